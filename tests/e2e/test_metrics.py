"""The engine's metrics, as Prometheus reads them from a real server."""

from __future__ import annotations

import re
import time
import urllib.request
from typing import get_args

import pytest

from iblip.engines.language_model.types import Outcome
from iblip.serving.client import CancelledError, GenerationOptions, OptionError
from iblip.serving.steps.metrics import DECODING, FAMILIES, PERIOD_S, RATE

LINE = re.compile(r'^(iblip_\w+)\{model="instructblip"(?:,reason="(\w+)")?\} (\S+)$', re.M)


def read(served):
    """Values by name, or by name and reason; and the type of every name."""
    text = urllib.request.urlopen(served.server.metrics_url, timeout=60).read().decode()
    values = {
        (name, reason) if reason else name: float(v) for name, reason, v in LINE.findall(text)
    }
    return values, dict(re.findall(r"^# TYPE (iblip_\w+) (\w+)$", text, re.M))


def wait_for(served, wanted):
    """The values once they are as wanted: they are brought up to date a few times a second."""
    end = time.monotonic() + 60
    while not wanted(values := read(served)[0]):
        assert time.monotonic() < end, values
        time.sleep(0.05)
    return values


def settled(served):
    """The values once nothing runs, and nothing is still to be shown of what ran before."""
    before = wait_for(served, is_idle)
    time.sleep(4 * PERIOD_S)
    after = wait_for(served, is_idle)
    del before[RATE], after[RATE]
    return after if before == after else settled(served)


def is_idle(values):
    names = ("iblip_slots_used", "iblip_requests_running", "iblip_requests_waiting")
    return not any(values.get(name, 1) for name in names)


def ended(reason):
    return ("iblip_requests_total", reason)


def test_every_family_is_there_with_its_type(served):
    values = wait_for(served, is_idle)
    _, types = read(served)
    families = {**FAMILIES, **DECODING}
    assert types == {**{name: family.kind for name, family in families.items()}, RATE: "gauge"}
    histograms = {name for name, family in FAMILIES.items() if family.kind == "histogram"}
    assert {f"{name}_{part}" for name in histograms for part in ("sum", "count")} <= values.keys()
    assert set(FAMILIES) - histograms - values.keys() == {"iblip_requests_total"}
    assert values["iblip_slots"] == served.manifest.limits.slots


def test_answers_are_counted(served, client, picture):
    before = settled(served)
    answers = [
        client.ask(picture, "What digit is it?", options=GenerationOptions(max_new_tokens=most))
        for most in (1, 40, 40)
    ]
    tokens = sum(answer.completion_tokens for answer in answers)
    goal = before["iblip_generated_tokens_total"] + tokens
    decoding = "iblip_decode_seconds_total"  # shown last: a scrape may fall between two series
    after = wait_for(
        served,
        lambda v: (
            v["iblip_generated_tokens_total"] == goal
            and v[decoding] > before[decoding]
            and is_idle(v)
        ),
    )
    for reason in ("eos", "length"):
        found = sum(answer.finish_reason == reason for answer in answers)
        assert after[ended(reason)] - before[ended(reason)] == found
    counters = "iblip_prompt_tokens_total", "iblip_cached_prompt_tokens_total"
    prompt_tokens = sum(after[name] - before[name] for name in counters)
    assert prompt_tokens == sum(answer.prompt_tokens for answer in answers)
    assert after[RATE] > 0
    assert all(after[name] >= before[name] for name in before if "_total" in str(name))


def test_answers_are_measured(served, client, picture):
    before = settled(served)
    most = GenerationOptions(min_new_tokens=5, max_new_tokens=5)
    answers = [client.ask(picture, "What digit is it?", options=most) for _ in range(3)]
    steps = "iblip_decode_batch_rows_count"  # shown last
    wait_for(served, lambda v: v[steps] > before[steps] and is_idle(v))
    after = settled(served)

    def grown(name):
        parts = ("count", "sum")
        return tuple(after[f"{name}_{part}"] - before[f"{name}_{part}"] for part in parts)

    assert grown("iblip_answer_tokens") == (3, 15)
    read_tokens = sum(answer.prompt_tokens for answer in answers)
    assert grown("iblip_request_prompt_tokens") == (3, read_tokens)
    timings = [answer.timing for answer in answers]
    decode_s = sum(timing.decode_s for timing in timings)
    first_s = sum(t.vision_s + t.queue_s + t.prefill_s for t in timings)
    for name, seconds in (
        ("iblip_queue_wait_seconds", sum(timing.queue_s for timing in timings)),
        ("iblip_time_to_first_token_seconds", first_s),
        ("iblip_time_per_output_token_seconds", decode_s / 4),
        ("iblip_request_duration_seconds", first_s + decode_s),
    ):
        assert grown(name) == (3, pytest.approx(seconds, rel=0.01, abs=1e-4)), name
    rows, total = grown("iblip_decode_batch_rows")
    assert rows == total >= 3 * 4  # one at a time


def test_cancelled_answers_are_counted_and_free_their_slots(served, client, picture):
    before = settled(served)
    for _ in range(5):
        stream = client.stream(picture, "Describe the image.", options=served.long)
        next(stream)
        stream.cancel()
        with pytest.raises(CancelledError):
            list(stream)

    def count(values):
        return sum(values[ended(reason)] for reason in get_args(Outcome))

    after = wait_for(served, lambda v: is_idle(v) and count(v) == count(before) + 5)
    assert after[ended("cancelled")] > before[ended("cancelled")]


def test_a_faulty_request_is_none_of_the_engine(served, client, picture):
    before = settled(served)
    with pytest.raises(OptionError, match="stop_token_ids has token 999999"):
        client.ask(picture, "What?", options=GenerationOptions(stop_token_ids=(999999,)))
    most = GenerationOptions(min_new_tokens=3, max_new_tokens=3)
    client.ask(picture, "What?", options=most)
    after = wait_for(served, lambda v: v[ended("length")] > before[ended("length")])
    after[ended("length")] -= 1
    assert all(after[ended(name)] == before[ended(name)] for name in get_args(Outcome))
