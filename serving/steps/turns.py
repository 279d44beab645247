"""Asks Triton whether callers are still there: a few at a time.

Each question is a message to Triton and back. A full queue asked whole, again and again, takes so
many of them that requests wait for their turn between them.
"""

from __future__ import annotations

from itertools import islice
from typing import TypeVar

T = TypeVar("T")

PER_S = 100
"""Callers asked after in a second, however many there are."""


def take_turns(waiting: dict[T, None], period_s: float) -> list[T]:
    """Those whose turn it is, of those who are asked after every `period_s` seconds.

    Args:
        waiting: in the order of their turns; those whose turn it is go to the end.
        period_s: seconds.
    """
    turns = list(islice(waiting, max(1, round(PER_S * period_s))))
    for one in turns:
        waiting[one] = waiting.pop(one)
    return turns
