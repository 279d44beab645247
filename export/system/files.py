"""Files that are written whole or not at all, linked or copied, and hashed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

LONGEST_NAME = 255
"""Bytes of a file's name, on every usual file system."""


@contextlib.contextmanager
def whole_file(path: Path, *, mode: int = 0o644, synced: bool = True) -> Iterator[BinaryIO]:
    """Yields a file to write, which replaces `path` when the block ends without an error.

    Args:
        path: of the file.
        mode: who may read it; mkstemp's own hides it from a server's user.
        synced: whether it is whole after a power cut, too.

    Raises:
        OSError: it cannot be written.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            if synced:
                file.flush()
                os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Writes a small file atomically: readers see either the old content or the new.

    Raises:
        OSError: it cannot be written.
    """
    with whole_file(path) as file:
        file.write(content)


def link_or_copy(source: Path, target: Path, others: Sequence[Path] = ()) -> None:
    """Makes `target` a hard link to `source`, or else a copy of it; whole or not at all.

    Args:
        source: a file.
        target: replaced if it exists; its directory must exist.
        others: files with the same content, which may be on a file system that `source` is not on;
            they are tried as the link's source after `source`.

    Raises:
        OSError: the file can be neither linked nor copied.
    """
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        draft = Path(scratch) / target.name
        for file in (source, *others):
            # Another disk, a file system without links, or another owner's file.
            with contextlib.suppress(OSError):
                draft.hardlink_to(file)
                break
        else:
            shutil.copyfile(source, draft)
        draft.replace(target)


def place_of(directory: Path) -> Path:
    """Returns `directory`, or the nearest one above it that is there; makes nothing.

    Args:
        directory: an absolute path.

    Raises:
        OSError: it is something else, or cannot be made.
    """
    place = directory
    while True:
        try:
            place.lstat()
            break
        except FileNotFoundError:
            place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
    if place != directory and not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
    return place


def refuse_irregular(path: Path) -> None:
    """Refuses what is there but is neither a file nor a directory: to read it may never end.

    Raises:
        OSError: it is a pipe, a device or a socket.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        message = "it is a pipe, a device or a socket; expected a file"
        raise OSError(errno.EINVAL, message, str(path))


def is_inside(name: object) -> bool:
    """Whether a relative path, as a file spells it, stays in the directory that it is relative to.

    Links are not followed: the hub's cache has links for files.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    try:
        parts = os.fsencode(name).split(b"/")
    except UnicodeEncodeError:  # half a character
        return False
    return bool(parts[0]) and b".." not in parts and max(map(len, parts)) <= LONGEST_NAME


def sha256(path: Path) -> str:
    """Returns the sha256 of a whole file, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
