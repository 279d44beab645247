"""Interactive requests are answered before bulk ones that came earlier."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from iblip.export.images import pixels_from_image
from iblip.serving.client import Client, OptionError
from tests.e2e.test_ask_command import run
from tests.e2e.test_raw_callers import ask, tensors
from tests.fixtures.serving import same

WAITING_S = 60


def test_an_interactive_question_overtakes_bulk_ones(served, picture):
    """Two callers keep every slot taken, until it and as many bulk as fill the slots twice wait."""
    slots, order, released = served.manifest.limits.slots, [], threading.Event()

    def occupy():
        with Client(served.url, timeout_s=WAITING_S) as client:
            while not released.is_set():
                stream = client.stream(picture, "What?", options=replace(served.long, n=slots))
                for _ in stream:
                    if released.is_set():
                        stream.cancel()
                        return

    def answer(name, priority, tokens):
        with Client(served.url, timeout_s=WAITING_S) as client:
            client.ask(picture, "What?", options=served.wild(tokens), priority=priority)
        order.append(name)

    with ThreadPoolExecutor(2 * slots + 3) as pool:
        answers = [pool.submit(occupy) for _ in range(2)]
        try:
            wait_for(served, lambda waiting: waiting >= 1)
            answers += [
                pool.submit(answer, f"bulk {number}", "bulk", 40) for number in range(2 * slots)
            ]
            wait_for(served, lambda waiting: waiting >= 2 * slots + 1)
            answers.append(pool.submit(answer, "interactive", "interactive", 5))
            wait_for(served, lambda waiting: waiting >= 2 * slots + 2)
        finally:
            released.set()
        for future in answers:
            future.result()
    assert order.index("interactive") < 1.5 * slots  # in their order it would be the last


def wait_for(served, true):
    from benchmarks.served import engine_metrics

    end = time.monotonic() + WAITING_S
    while not true(int(engine_metrics(served.server).get("iblip_requests_waiting", 0))):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_answer_is_the_same(served, client, picture):
    question = "What digit is it?"
    reference = served.in_process(picture, question)
    same(client.ask(picture, question, priority="bulk"), reference)
    done = run(str(picture), question, "--url", served.url, "--priority", "bulk")
    assert done.stdout == reference.text + "\n"
    pixels = pixels_from_image(picture, served.manifest.preprocessing)[None]
    result = ask(served, tensors(pixels), {"priority_class": "bulk"})
    assert result.as_numpy("text").tolist() == [reference.text.encode()]


def test_a_priority_that_is_none_is_refused(served, client, picture):
    with pytest.raises(OptionError, match="priority is 'slow'"):
        client.ask(picture, "What digit is it?", priority="slow")
    pixels = pixels_from_image(picture, served.manifest.preprocessing)[None]
    with pytest.raises(Exception, match="priority_class is 'slow'; expected"):
        ask(served, tensors(pixels), {"priority_class": "slow"})
