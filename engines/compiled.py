"""What engines compile when they start, and keep: one folder per graph, beside the plans.

    PROVIDERS/<engine kind>/
    ├── <graph's digest>/           the engine's own files, which nothing else reads
    ├── <graph's digest>.lock       shared by the sessions that use the folder, while they do
    └── <graph's digest>.opening    held by a session while it is being opened

ONNX Runtime's TensorRT providers build their plans while a session is opened, and write them as
they go; TensorRT-RTX compiles the kernels of a plan. So several sessions on one graph, such as a
server's instances on several GPUs, are opened one after another, and each finds what those before
it built. If no lock can be taken, as in a directory that is not writable, sessions are opened
without one.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iblip.export.errors import EngineError
from iblip.export.system.locks import locked

logger = logging.getLogger(__name__)
LOCK, OPENING = ".lock", ".opening"

COMPILERS: Mapping[str, str] = {
    "onnxruntime-tensorrt": "ONNX Runtime's TensorRT provider",
    "onnxruntime-tensorrt-rtx": "ONNX Runtime's TensorRT-RTX provider",
    "tensorrt-rtx": "TensorRT-RTX",
}
"""Kinds of engine that compile when they start, and what does it."""

DIGITS = 64
"""Hexadecimal digits of a graph's digest."""


def providers_beside(engines: Path) -> Path:
    """The directory of what providers keep, given the directory of the engine cache."""
    return engines.parent / "providers"


def folder_of_graph(engines: Path, kind: str, digest: str) -> Path:
    """The folder of one graph, which need not exist.

    Every graph has its own, because a provider tells graphs apart by name and not by weights.

    Args:
        engines: the directory of the engine cache.
        kind: a key of `COMPILERS`.
        digest: of the graph, its weights included.
    """
    return providers_beside(engines) / kind / digest


@dataclass(frozen=True, kw_only=True)
class ProviderFolder:
    """What a provider has compiled for one graph.

    Attributes:
        path: of the folder.
        size: total size of its files, in bytes.
        used: when a session last opened it, in ISO 8601.
    """

    path: Path
    size: int
    used: str

    @property
    def name(self) -> str:
        """Engine kind and graph's digest: `onnxruntime-tensorrt/…`."""
        return f"{self.path.parent.name}/{self.path.name}"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "kind": self.path.parent.name,
            "graph": self.path.name,
            "bytes": self.size,
            "used": self.used,
            "path": str(self.path),
        }

    def discard(self, *, dry_run: bool = False) -> bool:
        """Removes the folder; `False` if a session is using it.

        Args:
            dry_run: only report whether it could be removed.

        Raises:
            EngineError: it cannot be removed.
        """
        with contextlib.ExitStack() as stack:
            free = True
            with contextlib.suppress(OSError):  # no lock can be taken here, so nobody holds one
                free = stack.enter_context(locked(_beside(self.path, LOCK), waiting=None))
            if free and not dry_run:
                try:
                    if self.path.exists():
                        shutil.rmtree(self.path)
                    for suffix in (OPENING, LOCK):  # `locked` sees that its file has gone
                        _beside(self.path, suffix).unlink(missing_ok=True)
                except OSError as error:
                    raise EngineError(f"{self.path} cannot be removed: {error}") from error
            return free


def provider_folders(engines: Path) -> list[ProviderFolder]:
    """The folders of what providers have compiled, the last used first.

    Args:
        engines: the directory of the engine cache.

    Raises:
        OSError: they cannot be read.
    """
    folders = []
    for kind in COMPILERS:
        for path in (providers_beside(engines) / kind).glob("?" * DIGITS):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                if path.is_dir():
                    size, used = _measure(path), _read_last_use(path)
                    folders.append(ProviderFolder(path=path, size=size, used=used))
    return sorted(folders, key=lambda folder: folder.used, reverse=True)


@contextlib.contextmanager
def in_use(folder: Path | None) -> Iterator[None]:
    """Keeps a folder from being removed, and notes that it is used now.

    Args:
        folder: created if it does not exist; `None` does nothing.
    """
    with contextlib.ExitStack() as stack:
        if folder is not None:
            try:
                folder.parent.mkdir(parents=True, exist_ok=True)
                lock = locked(_beside(folder, LOCK), waiting=lambda: None, shared=True)
                stack.enter_context(lock)
                folder.mkdir(exist_ok=True)
                os.utime(folder)
            except OSError as error:
                logger.info("no lock on %s: %s", folder, error)
        yield


@contextlib.contextmanager
def opening(folder: Path | None) -> Iterator[None]:
    """Lets only one session at a time be opened on a folder. The caller has it `in_use`.

    Args:
        folder: of the session's provider; `None` does nothing.
    """

    def waiting() -> None:
        logger.warning("waiting for another process that is opening the graph of %s", folder)

    with contextlib.ExitStack() as stack:
        if folder is not None:
            try:
                stack.enter_context(locked(_beside(folder, OPENING), waiting))
            except OSError as error:
                logger.info("no lock on %s: %s", folder, error)
        yield


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(folder.name + suffix)


def _measure(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # replaced by its session
            size += path.lstat().st_size if path.is_file() else 0
    return size


def _read_last_use(folder: Path) -> str:
    moment = datetime.datetime.fromtimestamp(folder.stat().st_mtime, datetime.UTC)
    return moment.isoformat(timespec="seconds")


def provider_cache(kind: str, digest: str) -> Path | None:
    """This user's directory for what a provider compiles of a graph; `None` if it cannot be made.

    It lies beside the engine cache, in `$IBLIP_CACHE` or the user's caches; `iblip engines` lists
    and prunes it.

    Args:
        kind: a key of `COMPILERS`.
        digest: of the graph, its weights included.
    """
    from iblip.export.system.cache_directory import default_directory

    engines = default_directory()
    if engines is None:
        logger.warning(
            "%s compiles its engines at every start: this user has no home", COMPILERS[kind]
        )
        return None
    path = folder_of_graph(engines, kind, digest)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logger.warning("%s compiles its engines at every start: %s", COMPILERS[kind], error)
        return None
    return path
