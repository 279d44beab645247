"""Timing caches: TensorRT's measurements of its kernels, kept so that the next build is faster.

TensorRT 10 and 11 choose among kernels by running them, which is most of a build's time.
TensorRT-RTX measures nothing when it builds: the same calls exist there, do nothing, and are
deprecated since its 1.2 (`engines.tensorrt.libraries.SOURCES` says which library uses them).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iblip.export.system.files import write_whole
from iblip.export.system.locks import locked

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def timings(config: Any, path: Path | None) -> Iterator[None]:
    """Gives a build the timings in the file `path`, and adds the build's own timings to the file.

    The file is replaced whole and keeps what other builds added to it meanwhile. If it is damaged,
    of another GPU or not writable, timings are lost but the build goes on.

    Args:
        config: an `IBuilderConfig` without a timing cache.
        path: of the timings, for one version of a library and one GPU. `None` does nothing.
    """
    if path is None:
        yield
        return
    # Kept in a variable: TensorRT needs it until the build is done.
    cache = _attach(config, _read(path)) or _attach(config, b"")
    yield
    if cache is None:
        logger.warning("TensorRT accepts no timing cache here; nothing is added to %s", path)
        return
    try:
        _add(config, cache, path)
    except OSError as error:
        logger.warning("timings cannot be kept in %s: %s", path, error)


def _attach(config: Any, content: bytes) -> Any:
    """A timing cache of that content, attached to the build; `None` if the build rejects it."""
    cache = config.create_timing_cache(content)
    accepted = cache is not None and config.set_timing_cache(cache, ignore_mismatch=False)
    return cache if accepted else None


def _add(config: Any, cache: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock"), waiting=lambda: None):
        merged = config.create_timing_cache(_read(path))
        if merged is None or not merged.combine(cache, ignore_mismatch=False):
            merged = cache
        write_whole(path, bytes(memoryview(merged.serialize())))


def _read(path: Path) -> bytes:
    """The file's content; empty if it does not exist, from which TensorRT makes a new cache."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        logger.warning("timings cannot be read from %s: %s", path, error)
        return b""
