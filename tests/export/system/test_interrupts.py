from __future__ import annotations

import gc
import signal
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import pytest

from iblip.export.system.interrupts import interrupts_sent_again, submit


class Interrupted(Executor):
    """A pool in which Ctrl-C is pressed while it takes work."""

    def __init__(self) -> None:
        self.whole = False

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        signal.raise_signal(signal.SIGINT)
        self.whole = True
        return Future()


def test_an_interrupt_waits_until_work_is_handed_over() -> None:
    pool = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        submit(pool, int)
    assert pool.whole


def test_who_handles_interrupts_otherwise_is_told_once_and_stays() -> None:
    told: list[int] = []

    def handler(number: int, frame: Any) -> None:
        told.append(number)

    before = signal.signal(signal.SIGINT, handler)
    try:
        submit(Interrupted(), int)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert told == [signal.SIGINT]


def test_from_any_thread_it_is_the_pools_own() -> None:
    with ThreadPoolExecutor(1) as outer, ThreadPoolExecutor(1) as inner:
        assert submit(outer, lambda: submit(inner, divmod, 7, 2).result()).result() == (3, 1)


def press(*_: object) -> None:
    signal.raise_signal(signal.SIGINT)


class Finalized:
    __del__ = press


def in_a_finalizer() -> None:
    Finalized()


def in_a_callback_of_a_weak_reference() -> None:
    held = threading.Event()
    reference = weakref.ref(held, press)
    del held
    assert reference() is None


def in_a_callback_of_the_garbage_collector() -> None:
    def once(*_: object) -> None:
        gc.callbacks.remove(once)
        press()

    gc.callbacks.append(once)
    gc.collect()


PLACES = [in_a_finalizer, in_a_callback_of_a_weak_reference, in_a_callback_of_the_garbage_collector]


@pytest.mark.parametrize("pressed", PLACES)
def test_an_interrupt_that_nobody_can_be_raised_to_comes_again(
    pressed: Callable[[], None],
) -> None:
    with interrupts_sent_again():
        pressed()
        with pytest.raises(KeyboardInterrupt):
            threading.Event().wait(60)
