"""The exponents of `python -m benchmarks growth`."""

from __future__ import annotations

import pytest

from benchmarks.exponents import find_bends, fit_exponent, local_exponents

SIZES = (1, 2, 4, 8, 16)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_a_power_has_its_exponent_everywhere(exponent: float) -> None:
    costs = [3 * size**exponent for size in SIZES]
    assert fit_exponent(SIZES, costs) == pytest.approx(exponent)
    assert local_exponents(SIZES, costs) == pytest.approx([exponent] * 4)
    assert find_bends(SIZES, costs) == []


def test_a_curve_bends_where_its_exponent_changes() -> None:
    (bend,) = find_bends(SIZES, [1, 2, 4, 16, 64])
    assert bend.size == 4
    assert (bend.before, bend.after) == pytest.approx((1, 2))
    assert 1 < fit_exponent(SIZES, [1, 2, 4, 16, 64]) < 2


def test_sizes_need_not_double() -> None:
    assert local_exponents([10, 30, 1000], [1, 9, 9]) == pytest.approx([2, 0])
