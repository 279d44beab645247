"""Percentiles, goodput and objectives, against counting by hand."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iblip.export.errors import (
    DeadlineError,
    EngineError,
    IblipError,
    OptionError,
    QueueFullError,
)
from iblip.serving.bench.figures import PERCENTILES, Figures, percentiles
from iblip.serving.bench.loads import Closed, Open
from iblip.serving.bench.objective import Objective
from iblip.serving.bench.running import Outcome, Run, check_answered
from iblip.serving.bench.text import lines_of

TIMES = st.integers(1, 10_000).map(lambda ms: ms / 1000)


def outcome(first=0.1, last=1.0, tokens=10, fault=None, sent=0.001):
    return Outcome(due_s=0.0, sent_s=sent, first_s=first, last_s=last, tokens=tokens, fault=fault)


def figures(*outcomes, objective=None, seconds=2.0):
    load = Closed(concurrency=1, requests=len(outcomes))
    return Figures(Run(load=load, outcomes=outcomes, seconds=seconds), objective)


@given(st.lists(TIMES, min_size=1, max_size=50))
def test_percentiles_lie_between_neighbours_in_rank(times):
    ordered = sorted(times)
    for point in PERCENTILES:
        rank = Fraction(point * (len(times) - 1), 100)
        below, above = ordered[math.floor(rank)], ordered[math.ceil(rank)]
        expected = below + float(rank - math.floor(rank)) * (above - below)
        assert percentiles(times)[f"p{point}"] == pytest.approx(expected, abs=1e-5)


def test_there_are_no_percentiles_of_no_times():
    assert set(percentiles([]).values()) == {None}


@given(
    st.lists(st.tuples(TIMES, TIMES, st.integers(0, 20), st.booleans()), min_size=1, max_size=30),
    st.sampled_from([None, 0.2, 2.0]),
    st.sampled_from([None, 0.05]),
    st.sampled_from([1.0, 5.0]),
    st.sampled_from([0.5, 0.9, 1.0]),
)
def test_goodput_counts_the_requests_within_every_limit(rows, ttft, itl, e2e, share):
    objective = Objective(ttft_s=ttft, itl_s=itl, e2e_s=e2e, share=share)
    outcomes, good = [], 0
    for first, rest, tokens, refused in rows:
        fault = QueueFullError("full") if refused else None
        outcomes.append(outcome(first, first + rest, tokens, fault))
        slow = tokens > 1 and itl and ((first + rest) - first) / (tokens - 1) > itl
        late = (ttft and first > ttft) or first + rest > e2e
        good += not (refused or slow or late)
    found = figures(*outcomes, objective=objective)
    assert found.share == good / len(rows)
    assert found.goodput == good / 2.0
    assert found.meets == (good / len(rows) >= share)


@pytest.mark.parametrize("percent", range(1, 101))
def test_a_share_that_is_just_reached_is_met(percent):
    objective = Objective(ttft_s=1.0, share=percent / 100)
    outcomes = [outcome(first=0.5 if n < percent else 2.0, last=3.0) for n in range(100)]
    assert figures(*outcomes, objective=objective).meets
    assert not figures(*outcomes[1:], outcome(first=2.0, last=3.0), objective=objective).meets


def test_every_fate_is_counted_and_told():
    faults = [None, QueueFullError("full"), DeadlineError("late"), EngineError("broken")]
    found = figures(*(outcome(fault=fault) for fault in faults))
    document = found.to_json()
    assert [document[name] for name in ("answered", "refused", "timed_out", "failed")] == [1] * 4
    assert document["faults"] == ["broken"]
    text = "\n".join(lines_of(found))
    assert "not answered: 1 refused, 1 timed out, 1 failed\n    broken" in text


def test_answers_of_one_token_have_no_time_a_token():
    assert figures(outcome(tokens=1)).token_s["p50"] is None
    assert figures(outcome(first=0.5, last=1.0, tokens=11)).token_s["p50"] == 0.05


@pytest.mark.parametrize("fault", [QueueFullError("full"), DeadlineError("late")])
def test_too_much_to_do_is_a_result(fault):
    found = figures(outcome(fault=fault), objective=Objective(ttft_s=1.0))
    check_answered(found.run)
    assert found.share == 0.0
    assert "-" in "\n".join(lines_of(found))


def test_where_nothing_is_answered_the_fault_is_raised():
    with pytest.raises(IblipError, match="broken"):
        check_answered(figures(outcome(fault=EngineError("broken"))).run)


def test_a_generator_that_is_late_is_told():
    assert figures(outcome(first=0.1, sent=0.001)).advice is None
    assert figures(outcome(first=10.0, sent=0.02)).advice is None
    assert "50 ms late" in figures(outcome(first=0.1, sent=0.05)).advice


def test_an_objective_is_read():
    assert Objective.parse("ttft=500ms, itl=1.5ms,e2e=10s", 0.9) == Objective(
        ttft_s=0.5, itl_s=0.0015, e2e_s=10.0, share=0.9
    )


@pytest.mark.parametrize(
    ("text", "share", "said"),
    [
        ("", 0.9, "expected NAME=TIME"),
        ("ttft=500", 0.9, "a unit"),
        ("ttft", 0.9, "expected NAME=TIME"),
        ("tfft=1s", 0.9, "ttft"),
        ("ttft=-1s", 0.9, "expected NAME=TIME"),
        ("ttft=0ms", 0.9, "above 0"),
        ("ttft=1s,itl=0ms", 0.9, "above 0"),
        ("ttft=1s,ttft=2s", 0.9, "twice"),
        ("ttft=1s,", 0.9, "expected NAME=TIME"),
        ("ttft=1s", 0.0, "share"),
        ("ttft=1s", 99, "share"),
        ("ttft=1s", math.nan, "share"),
    ],
)
def test_another_objective_is_refused(text, share, said):
    with pytest.raises(OptionError, match=said):
        Objective.parse(text, share)


@given(st.floats(0.5, 50.0), st.integers(0, 5))
def test_arrivals_are_poisson_and_stretch_with_the_rate(rate, seed):
    times = Open(rate=rate, seconds=40.0, seed=seed).times()
    assert times == sorted(times)
    assert all(0 < at < 40.0 for at in times)
    assert len(times) == pytest.approx(40 * rate, abs=5 * math.sqrt(40 * rate))
    twice = Open(rate=2 * rate, seconds=20.0, seed=seed).times()
    assert twice == pytest.approx([at / 2 for at in times])


@pytest.mark.parametrize(("rate", "seconds"), [(0.01, 10), (1e5, 1e5), (math.nan, 1)])
def test_too_few_or_too_many_arrivals_are_refused(rate, seconds):
    with pytest.raises(OptionError, match="expected 1 to"):
        Open(rate=rate, seconds=seconds)
