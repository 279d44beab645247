"""Digests of a checkpoint's files and tensors, made while its graphs are traced."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import psutil

from iblip.export.errors import CheckpointError
from iblip.export.system.interrupts import submit
from iblip.export.weights.weight import SourceTensor

CHUNK = 2**24
"""Number of bytes that are read at once."""

IDENTITY = "st_dev", "st_ino", "st_size", "st_mtime_ns"
"""Fields of a file's status that differ if it has been replaced or written to."""

Part = tuple[Path, int, int]
"""File, offset and length of a tensor's bytes."""


class SourceDigests:
    """Hashes whole files, and tensors in them, in two threads that start at once.

    Tracing leaves the disk and a core idle. What has to be read again is still in memory then: the
    threads go ahead of `reach` by no more than half of it.

    Args:
        files: in the order in which weights are read.
        tensors: those that get a digest of their own; what does not lie in `files` is ignored.
        ahead: bytes that may be read before `reach` asks for them; `None` is half of the memory
            that is available.
    """

    def __init__(
        self, files: Sequence[Path], tensors: Iterable[SourceTensor], ahead: int | None = None
    ) -> None:
        self._starts: dict[Path, int] = {}
        self._total = 0
        self._found = {file: file.stat() for file in files}
        for file, status in self._found.items():
            self._starts[file] = self._total
            self._total += status.st_size
        self._ahead = psutil.virtual_memory().available // 2 if ahead is None else ahead
        self._limit = self._ahead
        self._changed = threading.Condition()
        self._stopped = False
        self._parts: dict[Part, Future[str]] = {
            (one.file, one.offset, one.length): Future()
            for one in tensors
            if one.file in self._starts
        }
        self._pool = ThreadPoolExecutor(2, "digests")

    def __enter__(self) -> Self:
        try:
            self._files = submit(self._pool, self._read_files)
        except BaseException:  # Ctrl-C: nobody else would end the threads, and the process waits
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._pool.shutdown()

    def reach(self, file: Path, end: int) -> None:
        """Says that the caller has read `file` up to offset `end`, and the files before it."""
        if (start := self._starts.get(file)) is not None:
            self._allow(start + end)

    def of(self, tensor: SourceTensor) -> str | None:
        """The sha256 of a tensor, in hexadecimal; `None` where it is not one of `tensors`.

        Raises:
            CheckpointError: its file has become shorter since it was opened.
            OSError: it cannot be read.
        """
        found = self._parts.get((tensor.file, tensor.offset, tensor.length))
        if found is None:
            return None
        self.reach(tensor.file, tensor.offset + tensor.length)
        return found.result()

    def finish(self) -> dict[Path, str]:
        """Reads the rest, and returns the sha256 of every file in hexadecimal.

        Raises:
            CheckpointError: a file is another than at first, and weights may be of either.
            OSError: a file cannot be read.
        """
        self._allow(self._total + 1)
        digests = self._files.result()
        for file, found in self._found.items():
            now = file.stat()
            if any(getattr(now, name) != getattr(found, name) for name in IDENTITY):
                raise CheckpointError(
                    f"{file} was changed while it was read; build again when nothing writes to it"
                )
        return digests

    def _allow(self, end: int) -> None:
        with self._changed:
            self._limit = max(self._limit, end + self._ahead)
            self._changed.notify_all()

    def _read_files(self) -> dict[Path, str]:
        try:
            return {file: self._read_file(file) for file in self._starts}
        except BaseException as error:
            for part in self._parts.values():
                if not part.done():
                    part.set_exception(error)
            raise

    def _read_file(self, file: Path) -> str:
        whole, position = hashlib.sha256(), 0
        waiting = sorted((part for part in self._parts if part[0] == file), reverse=True)
        begun = {}
        for chunk in self._chunks(file):
            hashed, end = self._pool.submit(whole.update, chunk), position + len(chunk)
            while waiting and waiting[-1][1] <= end:
                begun[waiting.pop()] = hashlib.sha256()
            for part, digest in list(begun.items()):
                first, last = part[1] - position, part[1] + part[2] - position
                digest.update(chunk[max(first, 0) : last])
                if last <= len(chunk):
                    self._parts[part].set_result(begun.pop(part).hexdigest())
            hashed.result()
            position = end
        for part in [*begun, *waiting]:
            self._parts[part].set_exception(CheckpointError(f"{file} ends within a tensor"))
        return whole.hexdigest()

    def _chunks(self, file: Path) -> Iterator[memoryview]:
        """The bytes of a file, as far as the caller has come, or soon will."""
        buffer, start = memoryview(bytearray(CHUNK)), self._starts[file]
        with file.open("rb", buffering=0) as stream:
            while size := stream.readinto(buffer):
                yield buffer[:size]
                start += size
                with self._changed:
                    while start >= self._limit and not self._stopped:
                        self._changed.wait()
                    if self._stopped:
                        raise InterruptedError("nobody waits for these digests")
