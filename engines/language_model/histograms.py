"""Histograms: how many measured values were within which bounds, and what they add up to."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf, nextafter
from typing import Self

SECONDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.35, 0.5, 0.75),
    *(1.0, 1.5, 2.5, 3.5, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0),
)
"""Upper bounds for the parts of a request."""

TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Upper bounds for one token."""

TOKENS = tuple(float(2**power) for power in range(13))
"""Upper bounds for lengths: 1 to 4,096."""

ROWS = (1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 128.0, 256.0)
"""Upper bounds for the rows of a batch."""


@dataclass(frozen=True)
class Histogram:
    """Values counted by bucket. `add` takes well under a microsecond and no lock.

    Attributes:
        bounds: upper bounds of the buckets but the last, which has none; increasing. A value that
            equals a bound is within it.
        counts: values in each bucket, which is one more than there are bounds.
        sums: what these values add up to.
    """

    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    sums: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.counts:
            self.counts.extend([0] * (len(self.bounds) + 1))
            self.sums.extend([0.0] * (len(self.bounds) + 1))

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    @property
    def total(self) -> float:
        """What they add up to."""
        return sum(self.sums)

    def add(self, value: float) -> None:
        """Counts a value."""
        bucket = bisect_left(self.bounds, value)
        self.counts[bucket] += 1
        self.sums[bucket] += value

    def copy(self) -> Self:
        """As it is now, for a reader that compares it with a later one."""
        return type(self)(self.bounds, list(self.counts), list(self.sums))

    def values_since(self, before: Histogram | None) -> Iterator[float]:
        """Values that turn an earlier histogram into this one: those of a bucket are their mean.

        Args:
            before: the earlier one; `None` is an empty one.
        """
        edges = (-inf, *self.bounds, inf)
        for bucket, (count, total) in enumerate(zip(self.counts, self.sums, strict=True)):
            if before is not None:
                count, total = count - before.counts[bucket], total - before.sums[bucket]
            if count:
                # A difference of sums is rounded; the value must not leave its bucket for that.
                lowest = nextafter(edges[bucket], inf)
                mean = min(max(total / count, lowest), edges[bucket + 1])
                yield from [mean] * count


@dataclass(frozen=True)
class Distributions:
    """What is measured of requests and steps.

    Attributes:
        queue_s: seconds of waiting for slots, of requests that got them.
        first_token_s: seconds until the prompt was read and the first token could be chosen, from
            the arrival, image included.
        token_s: seconds per token after the first, of answers that have more than one and are no
            ranking.
        request_s: seconds from the arrival to the end, of answered requests.
        prompt_tokens: positions of their prompts, images included.
        answer_tokens: tokens of each of their answers.
        rows: sequences of each step.
    """

    queue_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    first_token_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    token_s: Histogram = field(default_factory=lambda: Histogram(TOKEN_SECONDS))
    request_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    prompt_tokens: Histogram = field(default_factory=lambda: Histogram(TOKENS))
    answer_tokens: Histogram = field(default_factory=lambda: Histogram(TOKENS))
    rows: Histogram = field(default_factory=lambda: Histogram(ROWS))

    def copy(self) -> Distributions:
        """As they are now."""
        return Distributions(**{name: one.copy() for name, one in vars(self).items()})
