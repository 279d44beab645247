"""The files of the vision cache: bounded, shared, and no reason for a question to fail."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from iblip.engines.vision_cache import directory as module
from iblip.engines.vision_cache.directory import MIB, CacheDirectory, cache_directory
from iblip.export.errors import OptionError

EMBEDS = np.random.default_rng(0).standard_normal((1, 33, 96)).astype(np.float16)
SIZE = EMBEDS.nbytes + 32 + 128  # its sha256, and numpy's header


def key(number: int) -> str:
    return f"{number:064x}"


def files(path: Path) -> list[Path]:
    return sorted(path.iterdir())


def test_another_object_finds_what_one_has_written(tmp_path: Path) -> None:
    CacheDirectory(tmp_path, MIB).write(key(1), EMBEDS)
    other = CacheDirectory(tmp_path, MIB)
    found = other.read(key(1))
    assert found is not None
    assert (found.dtype, found.tobytes()) == (EMBEDS.dtype, EMBEDS.tobytes())
    assert other.read(key(2)) is None
    assert other.size == SIZE == files(tmp_path)[0].stat().st_size


def test_a_new_directory_is_made_for_the_first_file_and_is_the_users_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened = cache_directory(tmp_path / "new" / "cache")
    assert opened is not None
    assert opened.read(key(1)) is None
    assert (files(tmp_path), caplog.records) == ([], [])
    opened.write(key(1), EMBEDS)
    assert (tmp_path / "new" / "cache").stat().st_mode & 0o777 == 0o700
    assert files(opened.path)[0].stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "another's"])
def test_damage_is_a_miss_and_is_removed(tmp_path: Path, damage: str) -> None:
    cache = CacheDirectory(tmp_path, MIB)
    cache.write(key(1), EMBEDS)
    (file,) = files(tmp_path)
    data = bytearray(file.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    kept = {"truncated": data[:-1], "flipped": data, "emptied": b"", "another's": b"x" * SIZE}
    file.write_bytes(kept[damage])
    assert cache.read(key(1)) is None
    assert files(tmp_path) == []
    cache.write(key(1), EMBEDS)
    assert cache.read(key(1)) is not None


def test_a_file_under_another_key_is_damaged(tmp_path: Path) -> None:
    cache = CacheDirectory(tmp_path, MIB)
    cache.write(key(1), EMBEDS)
    shutil.copy(tmp_path / f"{key(1)}.embeds", tmp_path / f"{key(2)}.embeds")
    assert cache.read(key(2)) is None
    assert cache.read(key(1)) is not None


@pytest.mark.parametrize("what", ["pipe", "device", "large", "directory"])
def test_what_cannot_be_read_to_an_end_is_a_miss(tmp_path: Path, what: str) -> None:
    """Nobody waits for a pipe that nobody writes to."""
    cache, path = CacheDirectory(tmp_path, MIB), tmp_path / f"{key(1)}.embeds"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "directory":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    assert cache.read(key(1)) is None
    assert path.exists() == (what == "directory")
    cache.write(key(1), EMBEDS)
    assert (cache.read(key(1)) is None) == (what == "directory")


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    cache = CacheDirectory(tmp_path, MIB)
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        cache.write(key(1), np.array([{}], dtype=object))


def test_the_files_used_least_recently_make_place(tmp_path: Path) -> None:
    most = 12 * SIZE
    cache = CacheDirectory(tmp_path, most)
    for number in range(8):
        cache.write(key(number), EMBEDS)
        os.utime(tmp_path / f"{key(number)}.embeds", (number, number))
    assert cache.read(key(0)) is not None  # and so was used last
    for number in range(8, 40):
        cache.write(key(number), EMBEDS)
        assert sum(file.stat().st_size for file in files(tmp_path)) <= most
        assert cache.size == sum(file.stat().st_size for file in files(tmp_path))
        if number == 14:
            assert cache.read(key(0)) is not None
            assert cache.read(key(1)) is None
    assert len(files(tmp_path)) > 8


def test_a_smaller_bound_holds_at_once_and_other_files_stay(tmp_path: Path) -> None:
    cache = CacheDirectory(tmp_path, MIB)
    for number in range(20):
        cache.write(key(number), EMBEDS)
    (tmp_path / "notes.txt").write_bytes(b"x" * MIB)
    unfinished = [tmp_path / f".{key(number)}.embeds.a1b2" for number in range(2)]
    for path in unfinished:
        path.write_bytes(b"x")
    os.utime(unfinished[0], (time.time() - 7200,) * 2)
    smaller = CacheDirectory(tmp_path, 5 * SIZE)
    assert 0 < smaller.size <= 5 * SIZE
    assert (tmp_path / "notes.txt").exists()
    assert [path.exists() for path in unfinished] == [False, True]


def test_what_is_larger_than_the_bound_is_not_written(tmp_path: Path) -> None:
    cache = CacheDirectory(tmp_path, SIZE)
    cache.write(key(1), EMBEDS)
    assert files(tmp_path) == []


def fill(path: Path, first: int) -> None:
    cache = CacheDirectory(path, 64 * SIZE)
    for number in range(first, first + 100):
        cache.write(key(number), EMBEDS)
        found = cache.read(key(number))
        assert found is None or found.tobytes() == EMBEDS.tobytes()


def test_processes_share_it(tmp_path: Path) -> None:
    start = multiprocessing.get_context("spawn")
    writers = [start.Process(target=fill, args=(tmp_path, first)) for first in (0, 50, 100)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    found = files(tmp_path)
    assert 32 * SIZE < sum(file.stat().st_size for file in found) <= 64 * SIZE * 34 // 32
    reader = CacheDirectory(tmp_path, MIB * 64)
    assert all(reader.read(file.stem) is not None for file in found)


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """No file of this process may have a byte: writes fail as on a full disk."""
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@contextmanager
def replaced(path: Path) -> Iterator[None]:
    """By a file."""
    shutil.rmtree(path)
    path.touch()
    yield
    path.unlink()
    path.mkdir()


def test_a_directory_that_is_removed_is_made_again(tmp_path: Path) -> None:
    cache = CacheDirectory(tmp_path / "cache", MIB)
    for _ in range(2):
        cache.write(key(1), EMBEDS)
        assert cache.read(key(1)) is not None
        shutil.rmtree(tmp_path / "cache")
        assert cache.read(key(1)) is None


@pytest.mark.parametrize("state", [full_disk, replaced])
def test_what_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, state: object
) -> None:
    path = tmp_path / "cache"
    path.mkdir()
    cache = cache_directory(path)
    assert cache is not None
    with caplog.at_level(logging.WARNING), state(path):  # type: ignore[operator]
        for number in range(3):
            cache.write(key(number), EMBEDS)
            assert cache.read(key(number)) is None
    assert [str(path) in record.getMessage() for record in caplog.records] == [True]
    assert files(path) == []
    cache.write(key(1), EMBEDS)
    assert cache.read(key(1)) is not None


def test_a_directory_that_may_only_be_read_still_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = CacheDirectory(tmp_path, MIB)
    cache.write(key(1), EMBEDS)

    def refuse(*_: object, **__: object) -> None:  # as for root no directory does
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "whole_file", refuse)
    monkeypatch.setattr(module.os, "utime", refuse)
    for number in range(2, 5):
        cache.write(key(number), EMBEDS)
    assert cache.read(key(1)) is not None
    assert len(caplog.records) == 1


def test_what_is_no_directory_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="cannot be made: Not a directory"):
        cache_directory(tmp_path / "file")
    with pytest.raises(OptionError, match="cannot be made: Not a directory"):
        cache_directory(tmp_path / "file" / "below")
    with pytest.raises(OptionError, match="cannot be made: File name too long"):
        cache_directory(tmp_path / ("x" * 256))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OptionError, match="cannot be made: Not a directory"):
        cache_directory(tmp_path / "link")
    with pytest.raises(OptionError, match="is 0; expected 1 or more MiB"):
        cache_directory(tmp_path / "new", 0)
    for absurd in (1 << 44, 10**30):
        with pytest.raises(OptionError, match=f"is {absurd}; expected at most .* the disk of"):
            cache_directory(tmp_path / "new" / "cache", absurd)
    with pytest.raises(OptionError, match="there is no vision_cache"):
        cache_directory(None, 10)
    assert cache_directory(None) is None
    assert not (tmp_path / "new").exists()
    assert caplog.records == []
    tmp_path.chmod(0o777)
    cache_directory(tmp_path)
    assert "anybody on this machine may write" in caplog.text


def test_models_are_told_of_it(tmp_path: Path) -> None:
    cache = cache_directory(tmp_path, 3)
    assert cache is not None
    told = CacheDirectory.from_environment(cache.to_environment())
    assert told is not None
    assert (told.path, told.most_bytes) == (tmp_path, 3 * MIB)
    assert CacheDirectory.from_environment({}) is None
