"""What Prometheus is told of an engine, without Triton."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from iblip.engines.language_model.histograms import Distributions, Histogram
from iblip.engines.language_model.types import EngineStatus, Outcome
from iblip.serving.decoding.pool import DecodingStatus
from iblip.serving.steps.metrics import (
    DECODING,
    FAMILIES,
    RATE,
    EngineMetrics,
    MetricsThread,
    StatusMetrics,
)

IDLE = EngineStatus(
    slots=4,
    slots_used=0,
    running=0,
    waiting=0,
    requests=dict.fromkeys(get_args(Outcome), 0),
    generated_tokens=0,
    prompt_tokens=0,
    cached_prompt_tokens=0,
    queue_s=0.0,
    prefill_s=0.0,
    decode_s=0.0,
)


class Series:
    """As Triton's: a counter is only added to, a gauge only set, a histogram only observed."""

    def __init__(self, kind, buckets):
        self.kind = kind
        self.value = 0
        self.histogram = Histogram(buckets)
        self.calls = 0

    def increment(self, value):
        assert self.kind == "counter"
        assert value >= 0
        self.value += value
        self.calls += 1

    def set(self, value):
        assert self.kind == "gauge"
        self.value = value
        self.calls += 1

    def observe(self, value):
        assert self.kind == "histogram"
        self.histogram.add(value)
        self.calls += 1


class Endpoint:
    """As Triton's; `kinds` are those that it has."""

    def __init__(self, kinds=("counter", "gauge", "histogram")):
        self.series, self.kinds = {}, dict.fromkeys(kinds)

    def make_family(self, name, text, kind):
        assert text
        self.kinds[kind]  # a KeyError where there is none

        def make(labels, buckets=()):
            key = (name, *sorted(labels.items()))
            assert key not in self.series
            assert (kind == "histogram") == bool(buckets)
            assert all(type(bound) is float for bound in buckets)
            self.series[key] = Series(kind, buckets)
            return self.series[key]

        return make

    def value(self, name, **labels):
        return self.series[(name, *sorted({"model": "lm", **labels}.items()))].value


@pytest.fixture
def endpoint():
    return Endpoint()


@pytest.fixture
def metrics(endpoint):
    return EngineMetrics(endpoint.make_family, {"model": "lm"})


def test_every_number_of_the_status_is_shown(endpoint, metrics):
    metrics.update(IDLE, 0.0)
    busy = replace(
        IDLE,
        slots_used=3,
        running=2,
        waiting=5,
        requests={**IDLE.requests, "eos": 7, "refused": 1},
        generated_tokens=90,
        prompt_tokens=40,
        cached_prompt_tokens=24,
        queue_s=1.5,
        prefill_s=0.25,
        decode_s=2.0,
    )
    metrics.update(busy, 1.0)
    plain = [name for name, one in FAMILIES.items() if one.kind != "histogram" and not one.label]
    shown = {name: endpoint.value(name) for name in plain}
    assert shown == {
        "iblip_slots": 4,
        "iblip_slots_used": 3,
        "iblip_requests_running": 2,
        "iblip_requests_waiting": 5,
        "iblip_generated_tokens_total": 90,
        "iblip_prompt_tokens_total": 40,
        "iblip_cached_prompt_tokens_total": 24,
        "iblip_queue_seconds_total": 1.5,
        "iblip_prefill_seconds_total": 0.25,
        "iblip_decode_seconds_total": 2.0,
    }
    ends = {end: endpoint.value("iblip_requests_total", reason=end) for end in get_args(Outcome)}
    assert ends == busy.requests


def test_histograms_follow_the_engines(endpoint, metrics):
    engine, last = Distributions(), None
    for values in ([], [0.3, 0.3, 0.004], [7.0], [], [1e6, 0.25, 0.1]):
        for value in values:
            engine.first_token_s.add(value)
            engine.rows.add(round(value) + 1)
        last = replace(IDLE, distributions=engine.copy())
        metrics.update(last, 0.0)
    for name, mine in (
        ("iblip_time_to_first_token_seconds", engine.first_token_s),
        ("iblip_decode_batch_rows", engine.rows),
        ("iblip_answer_tokens", engine.answer_tokens),
    ):
        series = endpoint.series[name, ("model", "lm")]
        assert series.histogram.counts == mine.counts
        assert series.histogram.total == pytest.approx(mine.total)
        assert series.calls == mine.count


def test_a_triton_or_build_without_histograms_has_the_other_metrics(caplog):
    endpoint = Endpoint(kinds=("counter", "gauge"))
    metrics = EngineMetrics(endpoint.make_family, {"model": "lm"})
    metrics.update(IDLE, 0.0)
    assert endpoint.value("iblip_slots") == 4
    (record,) = caplog.records
    histograms = {name for name, family in FAMILIES.items() if family.kind == "histogram"}
    assert all(name in record.message for name in histograms)
    assert "2.51 has it" in record.message
    assert not histograms & {key[0] for key in endpoint.series}
    metrics.clear()


def test_what_was_decoded_is_shown(endpoint):
    metrics = StatusMetrics(DECODING, endpoint.make_family, {"model": "lm"})
    metrics.update(DecodingStatus(decoded=1), 0.0)
    metrics.update(DecodingStatus(decoded=5, remembered=3, refused=2), 1.0)
    assert {name: endpoint.value(name) for name in DECODING} == {
        "iblip_images_decoded_total": 5,
        "iblip_images_remembered_total": 3,
        "iblip_images_refused_total": 2,
    }
    metrics.clear()


def test_counters_are_added_to_and_what_stays_costs_nothing(endpoint, metrics):
    for tokens in (5, 5, 12, 12):
        metrics.update(replace(IDLE, generated_tokens=tokens), 0.0)
    (series,) = (
        s for key, s in endpoint.series.items() if key[0].endswith("_tokens_total") and s.value
    )
    assert (series.value, series.calls) == (12, 2)
    assert endpoint.series["iblip_slots", ("model", "lm")].calls == 1


def test_the_rate_is_of_the_last_seconds_and_falls_to_none(endpoint, metrics):
    for second in range(31):
        tokens = 100 * min(second, 10)
        metrics.update(replace(IDLE, generated_tokens=tokens), float(second))
        if second == 9:
            assert endpoint.value(RATE) == pytest.approx(100)
        if second == 13:
            assert 0 < endpoint.value(RATE) < 100
    assert endpoint.value(RATE) == 0


@pytest.mark.parametrize("name", [*FAMILIES, *DECODING, RATE])
def test_every_name_is_on_the_operators_page(name):
    page = Path(__file__).parents[3] / "docs" / "operating.md"
    assert f"`{name}`" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*FAMILIES, *DECODING, RATE])
def test_names_are_as_prometheus_wants_them(name):
    families = {**FAMILIES, **DECODING}
    kind = families[name].kind if name in families else "gauge"
    assert name.startswith("iblip_")
    assert name.endswith("_total") == (kind == "counter")


def test_the_thread_follows_the_engine_until_it_is_closed(endpoint, metrics):
    asked, status = threading.Semaphore(0), [IDLE]

    def ask():
        asked.release()
        return status[0]

    thread = MetricsThread(metrics, ask, period_s=0.001)
    assert asked.acquire(timeout=30)
    status[0] = replace(IDLE, running=1)
    while asked.acquire(blocking=False):  # what was asked before
        pass
    for _ in range(2):
        assert asked.acquire(timeout=30)
    assert endpoint.value("iblip_requests_running") == 1
    thread.close()
    while asked.acquire(blocking=False):
        pass
    assert not asked.acquire(timeout=0.05)


def test_a_fault_of_the_metrics_ends_them_alone(metrics, caplog):
    asked = threading.Event()

    def ask():
        asked.set()
        raise RuntimeError("boom")

    thread = MetricsThread(metrics, ask, period_s=0.001)
    assert asked.wait(30)
    thread.close()
    assert "metrics stop: they could not be updated" in caplog.text
