"""Files that several processes share: locks, and links or copies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(
    path: Path, waiting: Callable[[], object] | None, *, shared: bool = False
) -> Iterator[bool]:
    """Holds the lock of the file `path`, which is made where it is missing; a kill releases it.

    Args:
        path: of the lock; whoever holds it alone may remove it.
        waiting: called before waiting for another process that has it; `None` does not wait.
        shared: whether others may hold it too, as long as all of them share it.

    Yields:
        Whether the lock is held: `False` only without waiting.

    Raises:
        OSError: the file cannot be made, or its file system has no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        held = _lock(descriptor, waiting, shared)
        while held and not _is(path, descriptor):  # removed by who held it before
            os.close(descriptor)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            held = _lock(descriptor, waiting, shared)
        yield held
    finally:
        os.close(descriptor)


def _lock(descriptor: int, waiting: Callable[[], object] | None, shared: bool) -> bool:
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        if waiting is None:
            return False
        waiting()
        fcntl.flock(descriptor, kind)
    return True


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def link_or_copy(source: Path, target: Path) -> None:
    """Makes `target` the same file as `source`, or else a copy; whole or not at all.

    Args:
        source: a file.
        target: replaced if it is there; its directory exists.

    Raises:
        OSError: neither is possible.
    """
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        try:
            made.hardlink_to(source)
        except OSError:  # another disk, a file system without links, or another owner's file
            shutil.copyfile(source, made)
        made.replace(target)
