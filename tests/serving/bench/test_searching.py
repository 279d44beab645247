"""The search for a rate, against trying every rate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iblip.export.errors import OptionError
from iblip.serving.bench.objective import Objective
from iblip.serving.bench.searching import (
    DOUBLINGS,
    PRECISION,
    check_searchable,
    highest_rates,
)


class Server:
    """Meets the objective up to a rate."""

    def __init__(self, limit):
        self.limit, self.tried = limit, []

    def meets(self, rate):
        self.tried.append(rate)
        return rate <= self.limit


@given(st.floats(0.5, 500.0), st.floats(0.5, 500.0))
def test_the_highest_rate_is_found_within_the_precision(limit, start):
    server = Server(limit)
    rates = highest_rates(server.meets, start, lowest=0.5)
    assert rates == sorted((rate for rate in server.tried if rate <= limit), reverse=True)
    if limit < 2**DOUBLINGS * start:
        assert rates[0] <= limit <= rates[0] * (1 + PRECISION)
    assert len(server.tried) < 20


@given(st.floats(1.0, 100.0))
def test_no_rate_is_tried_below_the_lowest(start):
    server = Server(0.0)
    assert highest_rates(server.meets, start, lowest=1.0) == []
    assert min(server.tried) == 1.0


def test_a_start_below_the_lowest_begins_there():
    server = Server(3.0)
    assert highest_rates(server.meets, 0.1, lowest=1.0)[0] == pytest.approx(3.0, rel=PRECISION)
    assert server.tried[0] == 1.0


@pytest.mark.parametrize(
    ("objective", "said"),
    [(None, "needs --slo"), (Objective(itl_s=0.05), "Give ttft or e2e")],
)
def test_what_every_rate_meets_is_not_searched_for(objective, said):
    with pytest.raises(OptionError, match=said):
        check_searchable(objective)
