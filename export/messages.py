"""Long lists of faults as messages show them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import get_close_matches

SHOWN = 20
"""Faults that a message lists; of more it tells the number."""


def listed(faults: Sequence[str], count: int | None = None) -> str:
    """The first faults, a line each; `count` is of all, where only the first were made."""
    more = (len(faults) if count is None else count) - SHOWN
    return "\n  ".join([*faults[:SHOWN], *([f"and {more} more"] if more > 0 else [])])


def nearest(name: str, others: Collection[str], word: str = "nearest") -> str:
    """What to add to a name that fits nothing; nothing where no other is like it."""
    near = get_close_matches(name, others, n=1)
    return f" ({word}: {near[0]})" if near else ""
