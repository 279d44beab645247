"""Who is next in the queue: interactive requests before bulk ones, the first to come first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

Make = Callable[..., Any]


@pytest.fixture
def order(engine: Make, scripted: Make, ask: Make) -> Callable[..., list[str]]:
    """`order(("a", "bulk"), …)`: the prompts of waiting requests as they are then read."""

    def find(*requests: tuple[str, str], pause_s: float = 0.0, **options: Any) -> list[str]:
        model = scripted()
        model.gate = threading.Semaphore(1)
        one = engine(model, **options)
        generations = [one.submit(ask("running"))]
        model.wait_for_steps(1)  # so it waits no longer
        for prompt, priority in requests:
            generations.append(one.submit(ask(prompt, priority=priority)))
            time.sleep(pause_s)
        model.gate.release(1000)
        assert all(generation.result().text == "It is red." for generation in generations)
        assert model.prompts[0] == "running"
        prompts: list[str] = model.prompts[1:]
        return prompts

    return find


def test_interactive_requests_overtake_bulk_ones_and_none_of_their_own(
    order: Callable[..., list[str]],
) -> None:
    asked = [("a", "bulk"), ("b", "interactive"), ("c", "bulk"), ("d", "interactive")]
    assert order(*asked) == ["b", "d", "a", "c"]


def test_bulk_requests_that_have_waited_count_as_interactive(
    order: Callable[..., list[str]],
) -> None:
    asked = [("a", "bulk"), ("b", "interactive"), ("c", "bulk"), ("d", "interactive")]
    assert order(*asked, patience_s=0.0) == ["a", "b", "c", "d"]
    assert order(("old", "bulk"), ("b", "interactive"), pause_s=0.3, patience_s=0.3) == ["old", "b"]


def test_a_wide_request_that_is_next_is_not_overtaken(
    engine: Make, scripted: Make, ask: Make
) -> None:
    model = scripted(capacity=4)
    model.gate = threading.Semaphore(1)
    one = engine(model)
    running = one.submit(ask("running"))
    model.wait_for_steps(1)
    bulk = one.submit(ask("wide bulk", priority="bulk", num_beams=4))
    wide = one.submit(ask("wide", num_beams=4))
    narrow = one.submit(ask("narrow"))
    model.gate.release(1000)
    for generation in (running, bulk, wide, narrow):
        generation.result()
    assert model.prompts == ["running", "wide", "narrow", "wide bulk"]


def test_a_bulk_request_in_the_queue_is_cancelled_and_counted_as_any(
    engine: Make, scripted: Make, ask: Make
) -> None:
    model = scripted()
    model.gate = threading.Semaphore(1)
    one = engine(model)
    running = one.submit(ask("running"))
    model.wait_for_steps(1)
    bulk = one.submit(ask("bulk", priority="bulk"))
    assert one.status().waiting == 1
    bulk.cancel()
    assert bulk.result().finish_reason == "cancelled"
    assert one.status().waiting == 0
    model.gate.release(1000)
    assert running.result().text == "It is red."
