"""Suspends garbage collection while the library is called.

TensorRT holds a lock while it logs. A logger in Python allocates, so a collection may begin there
and find an object of the library, such as one of a failed build that its exception's traceback kept
alive. Freeing that object takes the same lock, and the process deadlocks.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.Lock()
_calls = 0
_resume = False


@contextmanager
def no_collection() -> Iterator[None]:
    """Used around calls of the library that may log, in any number of threads; also a decorator."""
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _calls, _resume
    with _LOCK:
        if not _calls:
            _resume = gc.isenabled()
            gc.disable()
        _calls += 1


def _leave() -> None:
    global _calls
    with _LOCK:
        _calls -= 1
        if not _calls and _resume:
            gc.enable()
