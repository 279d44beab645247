"""Calls of gRPC, away from Ctrl-C.

Python raises `KeyboardInterrupt` in the main thread, between any two of its instructions. In the
middle of gRPC's own code it leaves a lock of the channel held, and every later call on the channel
waits for that lock, whatever its timeout. So another thread makes the main thread's calls, and the
main thread waits at a queue that is written in C, where it may be interrupted.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


MOST_IDLE = 8
"""Threads that wait for the next call. Starting one costs more than a short answer's way back."""

_idle: list[SimpleQueue[Callable[[], object]]] = []
"""Where each of them waits."""

os.register_at_fork(after_in_child=_idle.clear)  # a child has none of the threads


def _start(function: Callable[[], object]) -> None:
    context = copy_context()  # in which a caller's interceptors may have a trace, for example
    try:
        inbox = _idle.pop()
    except IndexError:
        inbox = SimpleQueue()
        threading.Thread(target=_work, args=(inbox,), name="iblip-call", daemon=True).start()
    inbox.put(partial(context.run, function))


def _work(inbox: SimpleQueue[Callable[[], object]]) -> None:
    while True:
        inbox.get()()
        if len(_idle) >= MOST_IDLE:
            return
        _idle.append(inbox)


def apart(call: Callable[[], T]) -> T:
    """Returns what `call` returns, or raises what it raises; another thread calls it for the main.

    After an interrupt it goes on until it ends by itself.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    outcomes: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            outcomes.put((call(), None))
        except BaseException as error:
            outcomes.put((None, error))

    _start(run)
    value, error = outcomes.get()
    if error is not None:
        raise error
    result: T = value
    return result


class Responses:
    """The responses of one streaming call, in order; for the main thread, another receives them.

    Args:
        send: makes the call; what it raises is raised here.
    """

    def __init__(self, send: Callable[[], Any]) -> None:
        self._received: SimpleQueue[tuple[Any, BaseException | None]] | None = None
        self._end: BaseException | None = None
        self._call: Any = None
        self._left = False
        if threading.current_thread() is not threading.main_thread():
            self._call = send()
            return
        self._received = SimpleQueue()
        _start(lambda: self._receive(send))
        try:
            self._take()  # which says that the call was made
        except KeyboardInterrupt:
            self._left = True
            if self._call is not None:  # or else `_receive` cancels it
                self.cancel()
            raise

    def _receive(self, send: Callable[[], Any]) -> None:
        assert self._received is not None
        try:
            self._call = send()
            self._received.put((None, None))
            if self._left:
                self._call.cancel()
            for response in self._call:
                self._received.put((response, None))
            self._received.put((None, StopIteration()))
        except BaseException as error:
            self._received.put((None, error))

    def _take(self) -> Any:
        assert self._received is not None
        if self._end is None:
            value, self._end = self._received.get()
            if self._end is None:
                return value
        raise self._end

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._call) if self._received is None else self._take()

    def cancel(self) -> None:
        """Cancels the call; does nothing after its end."""
        apart(self._call.cancel)
