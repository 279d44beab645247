"""Locks between processes, each on a file."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(
    path: Path, waiting: Callable[[], object] | None, *, shared: bool = False
) -> Iterator[bool]:
    """Holds a lock on the file `path`, which is created if missing. A killed process releases it.

    Args:
        path: the lock's file; whoever holds the lock alone may remove it.
        waiting: called before waiting for another process that holds it; `None` does not wait.
        shared: whether other processes may share the lock.

    Yields:
        Whether the lock is held; `False` only if `waiting` is `None`.

    Raises:
        OSError: the file cannot be created, or its file system has no locks.
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
