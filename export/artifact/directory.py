"""A build directory that appears whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from iblip.export.artifact.manifest import MANIFEST
from iblip.export.errors import BuildDirectoryError
from iblip.export.messages import size_text
from iblip.export.system.locks import locked

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of directory that is built as a whole and may replace one of its own kind.

    Attributes:
        name: of the kind, with its article.
        mark: what distinguishes it from other directories, in words.
        argument: the command line's option that names the directory.
        holds: whether a directory is of this kind.
    """

    name: str
    mark: str
    argument: str
    holds: Callable[[Path], bool]


BUILD = Kind(
    name="a build",
    mark=MANIFEST,
    argument="--output",
    holds=lambda directory: (directory / MANIFEST).exists(),
)


@contextlib.contextmanager
def new_build(destination: Path, kind: Kind = BUILD) -> Iterator[Path]:
    """Yields an empty directory, which takes the place of `destination` if the block succeeds.

    The old build at `destination` stays usable until then, and for good if the block fails or the
    process is killed: the exchange is one system call. The next build removes what a killed one
    left behind.

    Raises:
        BuildDirectoryError: `destination` holds something that is not of that kind, another process
            is building there, or the disk is full or not writable.
    """
    destination = destination.absolute()
    check_replaceable(destination, kind)
    missing = [parent for parent in destination.parents if not parent.exists()]
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        lock = destination.with_name(f".{destination.name}.lock")
        with locked(lock, waiting=None) as held:
            if not held:
                raise BuildDirectoryError(
                    f"another process is building {destination}; wait for it, or stop it"
                )
            _remove_leftovers(destination)
            work = destination.with_name(f".{destination.name}.building-{os.getpid()}")
            work.mkdir()
            try:
                yield work
                _move_into_place(work, destination)
            finally:
                shutil.rmtree(work, ignore_errors=True)
                lock.unlink(missing_ok=True)  # while it is held: see `locked`
    except OSError as error:
        raise BuildDirectoryError(_explain(error, destination, kind)) from error
    finally:
        for parent in missing:  # those that now hold something stay
            with contextlib.suppress(OSError):
                parent.rmdir()


def check_replaceable(destination: Path, kind: Kind = BUILD) -> None:
    """Refuses a destination that `new_build` would refuse, before any work is done.

    Raises:
        BuildDirectoryError: it holds something that is not of that kind, or cannot be written.
    """
    above = next(parent for parent in destination.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise BuildDirectoryError(
            f"{destination} cannot be created: {above} is not a directory that can be written to."
            f" Give {kind.argument} another directory."
        )
    if not destination.exists() or kind.holds(destination):
        return
    if destination.is_dir() and not any(destination.iterdir()):
        return
    raise BuildDirectoryError(
        f"{destination} exists and is not {kind.name} (it has no {kind.mark}), so it is not"
        f" replaced. Give {kind.argument} another directory, or remove this one."
    )


def _remove_leftovers(destination: Path) -> None:
    for path in destination.parent.glob(f".{destination.name}.building-*"):
        shutil.rmtree(path, ignore_errors=True)


def _move_into_place(work: Path, destination: Path) -> None:
    for path in work.rglob("*"):
        if path.is_file() and not path.is_symlink():
            _flush(path)
    if not destination.exists():
        work.rename(destination)
    elif not _exchange(work, destination):
        # No atomic exchange on this file system: the gap between these two is the one moment at
        # which a kill leaves nothing at the destination; the old build is then beside it.
        aside = destination.with_name(f".{destination.name}.building-old")
        destination.rename(aside)
        work.rename(destination)
        shutil.rmtree(aside, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two paths by renameat2(2) with RENAME_EXCHANGE; returns `False` if that fails."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    status = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return bool(status == 0)


def _explain(error: OSError, destination: Path, kind: Kind) -> str:
    if isinstance(name := error.filename, str) and destination.parent not in Path(name).parents:
        return f"{name}: {error.strerror}. Nothing was changed at {destination}."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(destination.parent).free
            return (
                f"the disk is full: {size_text(free)} are free at {destination.parent}."
                f" Nothing was changed at {destination}. Free some space, or give {kind.argument} a"
                " directory on another disk."
            )
    return f"{destination} could not be written: {error}. What stood there is unchanged."
