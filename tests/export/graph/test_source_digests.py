"""A checkpoint's files and tensors are hashed in one pass, no further ahead than is allowed."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iblip.export.errors import CheckpointError
from iblip.export.graph.source_digests import SourceDigests
from iblip.export.system.interrupts import submit
from iblip.export.weights.weight import SourceTensor

CHUNK = 16


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iblip.export.graph.source_digests.CHUNK", CHUNK)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    values = np.random.default_rng(0).bytes(200)
    paths = [tmp_path / "b", tmp_path / "a", tmp_path / "empty"]
    for path, content in zip(paths, (values[:100], values[100:], b""), strict=True):
        path.write_bytes(content)
    return paths


def tensor(file: Path, offset: int, length: int) -> SourceTensor:
    shape = (length,)
    return SourceTensor(
        name="t", file=file, offset=offset, length=length, dtype="uint8", shape=shape
    )


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("ahead", [None, 0, 40])
def test_files_and_tensors_that_overlap_have_their_own_digests(
    files: list[Path], ahead: int | None
) -> None:
    places = [(0, 100), (0, 5), (3, 13), (16, 16), (15, 34), (15, 34), (40, 0), (99, 1), (100, 0)]
    tensors = [tensor(file, *place) for file in files[:2] for place in places]
    with SourceDigests(files, tensors, ahead) as digests:
        for one in tensors:
            part = one.file.read_bytes()[one.offset : one.offset + one.length]
            assert digests.of(one) == sha256(part)
        assert digests.of(tensor(files[0], 1, 2)) is None
        assert digests.finish() == {file: sha256(file.read_bytes()) for file in files}


def test_nothing_is_read_further_ahead_than_is_allowed(files: list[Path]) -> None:
    first = tensor(files[0], 0, CHUNK)
    with SourceDigests(files, [first], CHUNK) as digests:
        digests.of(first)
        status = files[1].stat()
        files[1].write_bytes(bytes(status.st_size))
        os.utime(files[1], ns=(status.st_atime_ns, status.st_mtime_ns))  # as if nobody had
        assert digests.finish()[files[1]] == sha256(bytes(status.st_size))


@pytest.mark.parametrize("how", ["replaced", "written to", "cut"])
def test_a_file_that_changes_meanwhile_is_named(
    files: list[Path], tmp_path: Path, how: str
) -> None:
    with SourceDigests(files, []) as digests:
        if how == "replaced":
            other = tmp_path / "other"
            shutil.copy2(files[1], other)
            other.replace(files[1])
        elif how == "written to":
            files[1].write_bytes(bytes(files[1].stat().st_size))
            os.utime(files[1], (1, 1))  # however coarse the clock of the disk is
        else:
            os.truncate(files[1], 50)
        with pytest.raises(CheckpointError, match=f"{files[1]} was changed while it was read"):
            digests.finish()


def test_an_interrupt_as_it_starts_ends_its_threads(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait for whoever reads further, and the process for them."""

    def interrupted(*arguments: Any) -> None:
        submit(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr("iblip.export.graph.source_digests.submit", interrupted)
    with pytest.raises(KeyboardInterrupt), SourceDigests(files, [], 0):
        pass
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("digests")]


def test_a_file_that_ends_within_a_tensor_is_named(files: list[Path]) -> None:
    with (
        SourceDigests(files, [tensor(files[0], 90, 20)]) as digests,
        pytest.raises(CheckpointError, match=f"{files[0]} ends within"),
    ):
        digests.of(tensor(files[0], 90, 20))


def test_a_file_that_cannot_be_read_fails_whoever_asks(files: list[Path]) -> None:
    last = tensor(files[1], 0, 10)
    with SourceDigests(files, [last], 0) as digests:
        files[1].unlink()
        with pytest.raises(FileNotFoundError):
            digests.of(last)
        with pytest.raises(FileNotFoundError):
            digests.finish()
