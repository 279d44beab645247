"""How a cost grows with the size of the work: the exponent of each stretch, and where it bends."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

BEND = 0.3
"""By how much the exponents of two neighbouring stretches differ where the curve bends: several
times what repeated runs differ by on a quiet machine."""


class Bend(NamedTuple):
    """A size at which the exponent changes.

    Attributes:
        size: where.
        before: the exponent of the stretch that ends there.
        after: that of the stretch that begins there.
    """

    size: float
    before: float
    after: float


def fit_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The exponent e of cost = c · size^e: the slope of the least squares of the logarithms.

    Args:
        sizes: of the work, in ascending order, two or more.
        costs: of each, above 0.
    """
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def local_exponents(sizes: Sequence[float], costs: Sequence[float]) -> list[float]:
    """The exponent between each size and the next; arguments as of `fit_exponent`."""
    return [
        fit_exponent(*zip(*pair, strict=True)) for pair in pairwise(zip(sizes, costs, strict=True))
    ]


def find_bends(sizes: Sequence[float], costs: Sequence[float]) -> list[Bend]:
    """The sizes at which the exponent changes by more than `BEND`; arguments as above."""
    local = local_exponents(sizes, costs)
    return [
        Bend(size, before, after)
        for size, (before, after) in zip(sizes[1:-1], pairwise(local), strict=True)
        if abs(after - before) > BEND
    ]
