"""Asks Triton whether callers are still there: a few at a time.

Each question is a message to Triton and back. A full queue asked whole, again and again, takes so
many of them that requests wait for their turn between them. Where callers turn out to have gone,
others have probably gone with them, and each that is found frees its place: so more are asked.
"""

from __future__ import annotations

from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")

PER_S = 100
"""Callers asked after in a second, however many there are, while they are still there."""

MOST = 64
"""Callers asked after at a time, while they turn out to have gone."""


class Turns(Generic[T]):
    """Whose turn it is, of those who are asked after again and again.

    Args:
        period_s: seconds between two times.
    """

    def __init__(self, period_s: float) -> None:
        self._fewest = self._count = max(1, round(PER_S * period_s))
        self._asked = 0

    def take(self, waiting: dict[T, None]) -> list[T]:
        """Those whose turn it is.

        Args:
            waiting: in the order of their turns; those whose turn it is go to the end.
        """
        turns = list(islice(waiting, self._count))
        for one in turns:
            waiting[one] = waiting.pop(one)
        self._asked = len(turns)
        return turns

    def found_gone(self, count: int) -> None:
        """Twice as many have their turn the next time if at least half of these had gone."""
        most = max(MOST, self._fewest)
        is_many = count > 0 and 2 * count >= self._asked
        self._count = min(2 * self._count, most) if is_many else self._fewest
