"""Timing caches: what TensorRT measured of its kernels, so that the next build need not measure it.

TensorRT 10 and 11 choose among kernels by running them, which is most of a build's time.
TensorRT-RTX times nothing when it builds: there the same calls exist and do nothing, deprecated
since its 1.2 (`engines.tensorrt.libraries.SOURCES` says which library uses them).
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
    """Gives a build the timings in the file `path`, and adds those that it makes to that file.

    The file is replaced whole, with what other builds added to it meanwhile. A file that is
    damaged, of another GPU or not writable costs the timings, never the build.

    Args:
        config: an `IBuilderConfig`, as yet without a timing cache.
        path: of the timings; of one library's version and one GPU. `None` does nothing.
    """
    if path is None:
        yield
        return
    # In a name, as TensorRT wants it to live until the build is over.
    cache = _attached(config, _content(path)) or _attached(config, b"")
    yield
    if cache is None:
        logger.warning("TensorRT takes no timing cache here; nothing is added to %s", path)
        return
    try:
        _add(config, cache, path)
    except OSError as error:
        logger.warning("timings cannot be kept in %s: %s", path, error)


def _attached(config: Any, content: bytes) -> Any:
    """A timing cache of that content, which the build will use; `None` where it does not fit."""
    cache = config.create_timing_cache(content)
    taken = cache is not None and config.set_timing_cache(cache, ignore_mismatch=False)
    return cache if taken else None


def _add(config: Any, cache: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock"), waiting=lambda: None):
        merged = config.create_timing_cache(_content(path))
        if merged is None or not merged.combine(cache, ignore_mismatch=False):
            merged = cache
        write_whole(path, bytes(memoryview(merged.serialize())))


def _content(path: Path) -> bytes:
    """Of the file; nothing where there is none, of which TensorRT makes a new cache."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        logger.warning("timings cannot be read from %s: %s", path, error)
        return b""
