"""Protects calls that Ctrl-C must not interrupt halfway."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

ArgumentsT = ParamSpec("ArgumentsT")
ResultT = TypeVar("ResultT")


def submit(
    pool: Executor,
    call: Callable[ArgumentsT, ResultT],
    *args: ArgumentsT.args,
    **kwargs: ArgumentsT.kwargs,
) -> Future[ResultT]:
    """Calls `pool.submit`, and raises an interrupt that arrives meanwhile only afterwards.

    Inside, it could leave the pool's own lock held, and its threads, and whoever joins them, would
    wait for ever.
    """
    if threading.current_thread() is not threading.main_thread():
        return pool.submit(call, *args, **kwargs)
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        return pool.submit(call, *args, **kwargs)
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)
