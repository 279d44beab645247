"""Shares of right answers, and how sure they are."""

from __future__ import annotations

import numpy as np
import pytest

from iblip.engines.evaluation.accuracy import accuracy, paired_interval, wilson
from iblip.engines.evaluation.first_token import compare_first_tokens


@pytest.mark.parametrize(
    ("right", "examples", "low", "high"),
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval(right, examples, low, high):
    assert wilson(right, examples) == pytest.approx((low, high), abs=5e-5)


def test_the_paired_interval_is_narrower_where_answers_go_together():
    low, high = paired_interval(2, 1, 500)
    assert low < -1 / 500 < high
    apart = wilson(250, 500)
    assert high - low < (apart[1] - apart[0]) / 5
    assert paired_interval(0, 0, 500)[0] == pytest.approx(-paired_interval(0, 0, 500)[1])


@pytest.mark.parametrize(
    ("lost", "won", "allowed", "kept"),
    [
        (0, 0, 0.0, True),
        (1, 0, 0.0, False),
        (1, 1, 0.0, True),  # as many right answers as before, if others
        (1, 0, 0.01, True),  # of 20 examples, one is more than a point
        (2, 0, 0.01, False),
        (3, 0, 0.15, True),
    ],
)
def test_a_loss_is_allowed_up_to_the_limit_or_one_example(lost, won, allowed, kept):
    reference = [True] * 10 + [False] * 10
    right = [False] * lost + [True] * (10 - lost + won) + [False] * (10 - won)
    found = accuracy(right, reference, allowed)
    assert (found.lost, found.won) == (lost, won)
    assert bool(found) is kept


def test_divergence_is_of_distributions_and_not_of_logits():
    wanted = np.log(np.array([[0.5, 0.25, 0.25], [0.9, 0.05, 0.05]], np.float32))
    found = np.log(np.array([[0.25, 0.5, 0.25], [0.9, 0.05, 0.05]], np.float32)) + 7.0
    first, second = compare_first_tokens(["a", "b"], found, wanted)
    assert first.divergence == pytest.approx(0.25 * np.log(2), abs=1e-6)
    assert not first.same
    assert second.divergence == pytest.approx(0, abs=1e-6)
    assert second.same
