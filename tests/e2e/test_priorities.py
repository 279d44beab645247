"""Interactive requests are answered before bulk ones that came earlier."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from iblip.export.images import pixels_from_image
from iblip.serving.client import Client, OptionError
from tests.e2e.test_ask_command import run
from tests.e2e.test_raw_callers import ask, tensors
from tests.fixtures.serving import same

WAITING_S = 60


def test_an_interactive_question_overtakes_bulk_ones(served, picture):
    """Every slot is taken; the questions that wait then end in the order of their class."""
    if served.manifest.language_model.is_encoder_decoder:
        pytest.skip("T5's longest answers are too short to keep the slots taken meanwhile")
    slots, order, lock = served.manifest.limits.slots, [], threading.Lock()

    def answer(name, priority):
        with Client(served.url, timeout_s=WAITING_S) as client:
            client.ask(picture, "What digit is it?", options=served.wild(20), priority=priority)
        with lock:
            order.append(name)

    with Client(served.url) as client, ThreadPoolExecutor(2 * slots + 1) as pool:
        running = [client.stream(picture, "What?", options=served.long) for _ in range(slots)]
        for stream in running:
            next(stream)
        bulk = [pool.submit(answer, f"bulk {number}", "bulk") for number in range(2 * slots)]
        wait_for(served, lambda waiting: waiting == 2 * slots)
        late = pool.submit(answer, "interactive", "interactive")
        wait_for(served, lambda waiting: waiting == 2 * slots + 1)
        for stream in running:
            stream.cancel()
        for future in (*bulk, late):
            future.result()
    assert order.index("interactive") <= slots  # those who began beside it may end before it


def wait_for(served, true):
    from benchmarks.served import engine_metrics

    end = time.monotonic() + WAITING_S
    while not true(int(engine_metrics(served.server)["iblip_requests_waiting"])):
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
