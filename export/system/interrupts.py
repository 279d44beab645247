"""Protects calls that Ctrl-C must not interrupt halfway, and Ctrl-C from being lost."""

from __future__ import annotations

import _thread
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
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


AGAIN_S = 0.05
"""Seconds after which an interrupt that was lost is sent again: by then the callback has ended."""


@contextlib.contextmanager
def interrupts_sent_again() -> Iterator[None]:
    """Until the block ends, sends Ctrl-C again where Python drops it.

    Where the signal falls into `__del__`, or a callback of a weak reference or of the garbage
    collector, there is nobody to raise to: Python prints the exception and goes on. torch holds
    fake tensors by weak references, and a build of the demo calls 2,600 such callbacks.
    """
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            # Not a `threading.Thread`, whose locks the code below the callback may hold.
            _thread.start_new_thread(_send_again, ())
        else:
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _send_again() -> None:
    time.sleep(AGAIN_S)
    # To that thread itself: it may wait by now, and only a signal of its own ends that.
    main = threading.main_thread().ident
    if main is not None:
        signal.pthread_kill(main, signal.SIGINT)
