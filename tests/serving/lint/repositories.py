"""Repositories broken on purpose, and some that only look it: what lint and Triton are asked of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tests.serving.lint.broken import (
    batching,
    configs,
    ensembles,
    harmless,
    steps,
    tensors,
    warmups,
)
from tests.serving.lint.broken.healthy import Case

TOPICS = (configs, tensors, batching, warmups, ensembles, steps)
CASES = [case for topic in TOPICS for case in topic.CASES]
HARMLESS = harmless.CASES


def _numbered(cases: Iterable[Case]) -> list[str]:
    """A name for each: its rule, and which of that rule's cases it is."""
    met: Counter[str] = Counter()
    names = []
    for case in cases:
        names.append(f"{case}-{met[case.rule]}")
        met[case.rule] += 1
    return names


NAMES = _numbered(CASES)
