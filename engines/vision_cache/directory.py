"""Arrays in the files of a directory, bounded in bytes, which several processes may share.

    DIR/<key>.embeds     the sha256 of the key and what follows, then numpy's format

Nothing here fails a question: what cannot be read is a miss, and what cannot be written is not
there the next time.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from iblip.export.errors import OptionError
from iblip.export.system.files import place_of, whole_file
from iblip.export.system.paths import PathLike, path_from

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

VARIABLE = "IBLIP_VISION_CACHE"
"""Holds path and bytes, as JSON: Triton passes nothing else to its models but their configs."""

MIB = 1 << 20

DEFAULT_MIB = 1024
"""Of a directory whose size nobody has set."""

SHARES = 32
"""A process writes one in so many of the bytes before it looks at the directory again; meanwhile
each other process may have written as many."""

DIGEST = 32
"""Bytes of a sha256."""

ABANDONED_S = 3600.0
"""Age at which a file that is not finished was a killed process's."""

_ENTRY = re.compile(r"[0-9a-f]{64}\.embeds")
_UNFINISHED = re.compile(rf"\.{_ENTRY.pattern}\..+")


def cache_directory(path: PathLike | None, mib: int | None = None) -> CacheDirectory | None:
    """The directory that a user has named; `None` where none is named.

    Where it is missing it is not made yet: a call that is refused leaves nothing.

    Args:
        path: of the directory.
        mib: the most that its files may take, in MiB; `None` is `DEFAULT_MIB`.

    Raises:
        OptionError: it cannot be made, is no directory, or its size is out of range or alone.
    """
    if mib is not None and mib < 1:
        raise OptionError(f"vision_cache_mib is {mib}; expected 1 or more MiB")
    if path is None:
        if mib is not None:
            raise OptionError(
                f"vision_cache_mib is {mib}, and there is no vision_cache; name its directory"
            )
        return None
    directory = path_from(path, "vision_cache").absolute()
    try:
        place = place_of(directory)
        mode, disk = place.stat().st_mode, shutil.disk_usage(place).total
    except OSError as error:
        raise OptionError(
            f"vision_cache is {directory}, which cannot be made: {error.strerror}. Name a "
            "directory, or a place for one."
        ) from error
    if mib is not None and 0 < disk < mib * MIB:  # 0: a file system that does not say it
        raise OptionError(
            f"vision_cache_mib is {mib}; expected at most {disk // MIB}, all that the disk of "
            f"{directory} has"
        )
    if place == directory and mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        logger.warning(
            "anybody on this machine may write to the vision cache %s, and so change answers; "
            "chmod 700 ends that",
            directory,
        )
    return CacheDirectory(directory, (mib or DEFAULT_MIB) * MIB)


class CacheDirectory:
    """Arrays by key. Thread-safe; other processes may read and write the same directory.

    Args:
        path: of the directory, which is made when the first file is written.
        most_bytes: of its files together. Each further process that writes may exceed it by one
            part in `SHARES`.
    """

    def __init__(self, path: Path, most_bytes: int) -> None:
        self.path, self.most_bytes = path, most_bytes
        self._lock = threading.Lock()
        self._share = most_bytes // SHARES
        self._found, self._written = 0, 0
        self._has_warned = False
        try:
            with contextlib.suppress(FileNotFoundError):
                self._make_place(self._share)
        except OSError as error:
            self._warn("listed", error)
        self._written = 0

    def to_environment(self) -> dict[str, str]:
        """The variable by which a server's models are told of it."""
        return {VARIABLE: json.dumps([str(self.path), self.most_bytes])}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self | None:
        """The inverse of `to_environment`; `None` where the variable is not set."""
        text = environment.get(VARIABLE)
        if text is None:
            return None
        path, most_bytes = json.loads(text)
        return cls(Path(path), most_bytes)

    @property
    def size(self) -> int:
        """Bytes of its files, as far as this process knows."""
        return self._found + self._written

    def read(self, key: str) -> Array | None:
        """The array, or `None` where it is missing or damaged.

        Args:
            key: 64 hexadecimal digits.
        """
        path = self._path(key)
        try:
            array = _array_from_bytes(key, _bytes_from_file(path, self.most_bytes))
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn("read", error)
            return None
        except ValueError:
            logger.warning("%s is damaged, and is removed", path)
            self._remove(path)
            return None
        with contextlib.suppress(OSError):  # removed meanwhile, or it may only be read
            os.utime(path)  # what was used least recently is removed first
        return array

    def write(self, key: str, array: Array) -> None:
        """Writes a file, whole or not at all, and removes those used least recently.

        Args:
            key: 64 hexadecimal digits.
            array: of any shape and of one of numpy's own dtypes.
        """
        data = _bytes_from_array(key, array)
        if len(data) > self.most_bytes - self._share:
            return
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_place(len(data))
            # Not synced: what a power cut tears is damaged, and so a miss.
            with whole_file(self._path(key), mode=0o600, synced=False) as file:
                file.write(data)
        except OSError as error:
            self._warn("written to", error)

    def _path(self, key: str) -> Path:
        return self.path / f"{key}.embeds"

    def _make_place(self, size: int) -> None:
        """Counts a file that is about to be written, once there is place for it."""
        with self._lock:
            if self._written + size >= self._share:
                self._found = self._trim(self.most_bytes - self._share - size)
                self._written = 0
            self._written += size

    def _trim(self, most: int) -> int:
        """Removes files until the others take at most so many bytes, and returns their bytes."""
        entries = []
        with os.scandir(self.path) as listing:
            for item in listing:
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    status = item.stat(follow_symlinks=False)
                    if _ENTRY.fullmatch(item.name):
                        entries.append((status.st_mtime, status.st_size, Path(item.path)))
                    age = time.time() - status.st_mtime
                    if _UNFINISHED.fullmatch(item.name) and age > ABANDONED_S:
                        self._remove(Path(item.path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= most:
                break
            self._remove(path)
            total -= size
        return total

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._warn("written to", error)

    def _warn(self, verb: str, error: OSError) -> None:
        """Says once that the directory is of less use than was meant."""
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "the vision cache %s cannot be %s (%s); images are encoded without it",
                self.path,
                verb,
                error.strerror,
            )


def _bytes_from_file(path: Path, most: int) -> bytes:
    """Raises ValueError where there is a pipe or a device, which may never end, or too much."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise ValueError("it is no file")
    if status.st_size > most:
        raise ValueError("it is larger than all files may be")
    return path.read_bytes()


def _bytes_from_array(key: str, array: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return _digest(key, file.getbuffer()) + file.getvalue()


def _array_from_bytes(key: str, data: bytes) -> Array:
    """Raises ValueError where they are not those that were written for this key."""
    if _digest(key, memoryview(data)[DIGEST:]) != data[:DIGEST]:
        raise ValueError("its sha256 is another")
    array: Array = np.load(io.BytesIO(data[DIGEST:]), allow_pickle=False)
    return array


def _digest(key: str, content: memoryview) -> bytes:
    """A file that is moved to another key, or copied, has a wrong one."""
    digest = hashlib.sha256(key.encode())
    digest.update(content)
    return digest.digest()
