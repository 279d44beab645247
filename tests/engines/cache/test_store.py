"""Entries are whole, are checked when they are taken, and never cost a build."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from iblip.engines.cache.catalogue import find, scan
from iblip.engines.cache.store import EngineCache
from iblip.export.errors import EngineError, OptionError
from iblip.export.system.cache_directory import default_directory
from iblip.serving.cli import iblip

Keep = Callable[..., str]


def test_a_plan_that_was_kept_is_taken_as_a_link(
    cache: EngineCache, keep: Keep, tmp_path: Path
) -> None:
    key, output = keep(1), tmp_path / "model.plan"
    entry = cache.take(key, output)
    assert entry is not None
    assert output.read_bytes() == b"a plan"
    assert output.samefile(entry.plan)
    assert entry.details == {"bytes": 6, "seconds": 1.5}
    assert (entry.graph, entry.build, entry.target) == (
        "vision_encoder/model",
        "/builds/demo",
        "sm89",
    )
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_hits_are_counted(cache: EngineCache, keep: Keep, tmp_path: Path) -> None:
    key = keep(1)
    assert find(cache, key).hits == 0
    for _ in range(3):
        cache.take(key, tmp_path / "model.plan")
    assert find(cache, key).hits == 3


def test_what_was_not_kept_is_not_taken(cache: EngineCache, tmp_path: Path) -> None:
    assert cache.take("0" * 64, tmp_path / "model.plan") is None
    assert list(tmp_path.iterdir()) == []


def test_a_plan_is_copied_where_it_cannot_be_linked(
    cache: EngineCache, keep: Keep, tmp_path: Path
) -> None:
    key = keep(1)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        output = Path(other) / "model.plan"
        if output.parent.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("/dev/shm is the same file system")
        entry = cache.take(key, output)
        assert entry is not None
        assert output.read_bytes() == b"a plan"
        assert output.stat().st_nlink == 1
        assert not entry.shared


def test_a_plan_that_cannot_be_put_into_its_place_is_told(
    cache: EngineCache, keep: Keep, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert cache.take(keep(1), tmp_path / "nowhere" / "model.plan") is None
    assert "cannot be taken to" in caplog.text


def spoil_content(directory: Path) -> None:
    (directory / "plan").chmod(0o644)
    (directory / "plan").write_bytes(b"A plan")


def cut_plan(directory: Path) -> None:
    os.truncate(directory / "plan", 3)


def cut_record(directory: Path) -> None:
    record = directory / "record.json"
    record.write_text(record.read_text()[:40])


def change_record(**changes: object) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        record = directory / "record.json"
        record.write_text(json.dumps({**json.loads(record.read_text()), **changes}))

    return change


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_content, "its plan has sha256"),
        (cut_plan, "its plan has 3 bytes, expected 6"),
        (lambda directory: (directory / "plan").unlink(), "it has no plan"),
        (cut_record, "its record cannot be read"),
        (lambda directory: (directory / "record.json").unlink(), "it has no record.json"),
        (change_record(format=99), "its record is of 99"),
        (change_record(key="0" * 64), "its record is of 1 and 0000"),
        (change_record(recipe=None, bytes="6"), "its plan has 6 bytes, expected 6"),
    ],
)
def test_a_damaged_entry_is_told_removed_and_made_anew(
    cache: EngineCache,
    keep: Keep,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], None],
    reason: str,
) -> None:
    key = keep(1)
    spoil(cache.plans / key)
    assert cache.take(key, tmp_path / "model.plan") is None
    assert f"{key[:12]} of the engine cache is damaged: {reason}" in caplog.text
    assert "It is removed and will be rebuilt." in caplog.text
    assert not (tmp_path / "model.plan").exists()
    assert list(cache.plans.iterdir()) == []
    assert keep(1) == key
    assert cache.take(key, tmp_path / "model.plan") is not None


def test_lost_usage_is_no_damage(cache: EngineCache, keep: Keep, tmp_path: Path) -> None:
    key = keep(1)
    cache.take(key, tmp_path / "model.plan")
    (cache.plans / key / "usage.json").write_text("{")
    entry = find(cache, key)
    assert (entry.hits, entry.used) == (0, entry.created)


def test_of_two_that_are_kept_without_a_lock_the_first_stays(
    cache: EngineCache, keep: Keep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("iblip.export.system.locks.fcntl.flock", no_locks)
    key = keep(1, b"the first")
    assert keep(1, b"the second") == key
    cache.take(key, tmp_path / "model.plan")
    assert (tmp_path / "model.plan").read_bytes() == b"the first"
    assert list(cache.making.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_told_and_fails_nothing(
    tmp_path: Path, keep: Keep, cache: EngineCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.directory.write_text("a file in its place")
    key = keep(1)
    assert "vision_encoder/model was built, but the engine cache" in caplog.text
    assert cache.take(key, tmp_path / "model.plan") is None


@pytest.fixture
def read_only_cache(cache: EngineCache, keep: Keep):
    """A cache with one plan, on a file system that nobody can write to."""
    key = keep(1)
    mounted = cache.directory.parent / "read-only"
    mounted.mkdir()
    commands = [
        ["mount", "--bind", str(cache.directory), str(mounted)],
        ["mount", "-o", "remount,ro,bind", str(mounted)],
    ]
    for command in commands:
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting is not permitted here")
    yield EngineCache(mounted), key
    subprocess.run(["umount", str(mounted)], check=True)


def test_a_cache_that_can_only_be_read_is_used(read_only_cache, tmp_path: Path) -> None:
    cache, key = read_only_cache
    with cache.claim(key, waiting=None) as free:
        assert free
        entry = cache.take(key, tmp_path / "model.plan")
    assert entry is not None
    assert (tmp_path / "model.plan").read_bytes() == b"a plan"


def test_an_entry_that_another_process_has_is_waited_for(
    cache: EngineCache, keep: Keep, tmp_path: Path
) -> None:
    key = keep(1)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from iblip.engines.cache.store import EngineCache\n"
        f"with EngineCache(Path({str(cache.directory)!r})).claim({key!r}, waiting=None) as free:\n"
        "    print(free, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "True\n"
        with cache.claim(key, waiting=None) as free:
            assert not free
        assert not cache.discard(key)
        told = []

        def waiting() -> None:
            told.append("waiting")
            other.stdin.close()

        with cache.claim(key, waiting) as free:
            assert free
    assert told == ["waiting"]
    assert cache.discard(key)
    assert scan(cache).entries == ()


def test_a_lock_that_was_removed_while_waiting_for_it_is_taken_anew(
    cache: EngineCache, keep: Keep
) -> None:
    key = keep(1)
    with cache.claim(key, waiting=None) as free:
        assert free
        (cache.locks / key).unlink()
        with cache.claim(key, waiting=None) as other:
            assert other  # of a file of its own, as the first has none any more


def test_a_few_digits_stand_for_a_key(cache: EngineCache, keep: Keep) -> None:
    keys = [keep(number) for number in range(40)]
    assert find(cache, keys[0][:12].upper()).key == keys[0]
    first = next(key[0] for key in keys if sum(other[0] == key[0] for other in keys) > 1)
    with pytest.raises(OptionError, match=rf"plans begin with {first}: .* Give more digits"):
        find(cache, first)
    wrong = keys[0][:11] + ("0" if keys[0][11] != "0" else "1")
    with pytest.raises(OptionError, match=rf"no plan '{wrong}'. Did you mean '{keys[0][:12]}"):
        find(cache, wrong)
    with pytest.raises(OptionError, match="has no plan ''"):
        find(cache, "")


def test_damage_is_listed_and_told_where_it_is_asked_for(cache: EngineCache, keep: Keep) -> None:
    good, bad = keep(1), keep(2)
    cut_record(cache.plans / bad)
    found = scan(cache)
    assert [entry.key for entry in found.entries] == [good]
    assert "its record cannot be read" in found.damaged[bad]
    with pytest.raises(EngineError, match="is damaged: its record cannot be read"):
        find(cache, bad)


def test_a_cache_that_cannot_be_read_is_told(cache: EngineCache) -> None:
    cache.directory.mkdir()
    cache.plans.write_text("a file in its place")
    with pytest.raises(EngineError, match=r"cannot be read: .* Give another directory with"):
        scan(cache)


def test_the_place_is_the_variables_or_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IBLIP_CACHE", "/data/caches")
    assert default_directory() == Path("/data/caches/engines")
    monkeypatch.delenv("IBLIP_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/me/.caches")
    assert default_directory() == Path("/home/me/.caches/iblip/engines")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_directory() == Path("/home/me/.cache/iblip/engines")
    monkeypatch.setattr("sys.platform", "darwin")
    assert default_directory() == Path("/home/me/Library/Caches/iblip/engines")


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("IBLIP_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert default_directory() is None
    listed = CliRunner().invoke(iblip, ["engines", "list"])
    assert listed.exit_code == 2
    assert (
        "Name one with --engine-cache, or with the environment variable IBLIP_CACHE"
        in listed.stderr
    )
