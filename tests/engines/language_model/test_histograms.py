"""Histograms, how the difference of two becomes values, and what an engine measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iblip.engines.language_model.histograms import (
    ROWS,
    SECONDS,
    TOKEN_SECONDS,
    TOKENS,
    Distributions,
    Histogram,
)
from iblip.export.errors import DeadlineError, EngineError

Make = Callable[..., Any]

values = st.lists(
    st.one_of(st.floats(0, 1e6), st.sampled_from((*SECONDS, 1e-9, 0.1 + 0.2))), max_size=60
)


@given(values, values)
def test_what_is_observed_of_a_difference_gives_the_same_histogram(before, after):
    mine, theirs = Histogram(SECONDS), Histogram(SECONDS)
    seen = None
    for some in (before, after):
        for value in some:
            mine.add(value)
        for value in mine.values_since(seen):
            theirs.add(value)
        seen = mine.copy()
    assert theirs.counts == mine.counts
    assert abs(theirs.total - mine.total) <= 1e-9 * max(1.0, mine.total)


def test_a_value_at_a_bound_is_within_it():
    histogram = Histogram((1.0, 2.0))
    for value in (1.0, 2.0, 2.5):
        histogram.add(value)
    assert (histogram.counts, histogram.count, histogram.total) == ([1, 1, 1], 3, 5.5)


def test_a_copy_stays_as_it_is():
    engine = Distributions()
    before = engine.copy()
    engine.rows.add(1)
    assert (before.rows.count, engine.rows.count) == (0, 1)


def test_bounds_increase():
    for bounds in (SECONDS, TOKEN_SECONDS, TOKENS, ROWS):
        assert all(low < high for low, high in pairwise(bounds))


def test_an_engine_measures_its_requests_and_steps(engine: Make, scripted: Make, ask: Make) -> None:
    model = scripted("It is red.", capacity=4)
    opened = engine(model)
    lengths = []
    for options in (
        {"max_new_tokens": 1},
        {"max_new_tokens": 4},
        {"num_beams": 4},
        {"n": 2, "temperature": 1.0, "seed": 1},
        {"candidates": ("It", "is")},
    ):
        answer = opened.submit(replace(ask(**options), vision_s=2.0)).result()
        lengths += [one.completion_tokens for one in (answer, *answer.others)]
    seen = opened.status().distributions
    assert (seen.queue_s.count, seen.first_token_s.count, seen.request_s.count) == (5, 5, 5)
    assert seen.first_token_s.total > 5 * 2.0
    assert seen.request_s.total > seen.first_token_s.total
    assert (seen.answer_tokens.count, seen.answer_tokens.total) == (6, sum(lengths))
    assert seen.token_s.count == 3  # of neither the answer of one token nor the ranking
    assert (seen.rows.count, seen.rows.total) == (len(model.batches), sum(model.batches))
    assert seen.prompt_tokens.total == opened.status().prompt_tokens


def test_what_has_no_answer_is_not_measured_as_one(engine: Make, scripted: Make, ask: Make) -> None:
    model = scripted(capacity=1)
    opened = engine(model)
    with pytest.raises(DeadlineError):
        opened.submit(ask(deadline=0.0)).result()
    model.error = EngineError("boom")
    with pytest.raises(EngineError):
        opened.submit(ask()).result()
    seen = opened.status().distributions
    assert seen.first_token_s.count == seen.queue_s.count == 1  # it began, and then failed
    assert seen.request_s.count == seen.answer_tokens.count == seen.token_s.count == 0
