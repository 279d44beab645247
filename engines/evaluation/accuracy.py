"""The share of right answers with its confidence interval, and whether a build loses any."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Z = 1.959963984540054
"""Standard normal quantile of a two-sided confidence of 95 %."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Right answers of a build and of the reference, on the same examples.

    Attributes:
        examples: the number of examples.
        right, reference_right: how many the build and the reference answered right.
        lost: how many are right in the reference and wrong in the build.
        won: how many are wrong in the reference and right in the build.
        allowed_loss: the share of right answers that the build may lose. Unless it is 0, one
            example may always be lost: few examples cannot show a smaller share.
    """

    examples: int
    right: int
    reference_right: int
    lost: int
    won: int
    allowed_loss: float

    @property
    def most_lost(self) -> float:
        """The share of these examples that may be lost."""
        return max(self.allowed_loss, 1 / self.examples) if self.allowed_loss else 0.0

    def __bool__(self) -> bool:
        return (self.reference_right - self.right) / self.examples <= self.most_lost

    def to_json(self) -> dict[str, Any]:
        """Counts, shares and intervals, JSON-ready."""
        share = (self.won - self.lost) / self.examples
        return {
            "passed": bool(self),
            "examples": self.examples,
            "right": self.right / self.examples,
            "interval": list(wilson(self.right, self.examples)),
            "reference_right": self.reference_right / self.examples,
            "reference_interval": list(wilson(self.reference_right, self.examples)),
            "lost": self.lost,
            "won": self.won,
            "difference": share,
            "difference_interval": list(paired_interval(self.lost, self.won, self.examples)),
            "allowed_loss": self.allowed_loss,
        }


def accuracy(
    right: Sequence[bool], reference_right: Sequence[bool], allowed_loss: float
) -> Accuracy:
    """Compares, for each example, whether the build and the reference answered right."""
    pairs = list(zip(right, reference_right, strict=True))
    return Accuracy(
        examples=len(pairs),
        right=sum(right),
        reference_right=sum(reference_right),
        lost=sum(theirs and not ours for ours, theirs in pairs),
        won=sum(ours and not theirs for ours, theirs in pairs),
        allowed_loss=allowed_loss,
    )


def wilson(right: int, examples: int) -> tuple[float, float]:
    """The 95 % interval of a share.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    share, spread = right / examples, Z * Z / examples
    middle = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / examples + spread / (4 * examples)) / (1 + spread)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def paired_interval(lost: int, won: int, examples: int) -> tuple[float, float]:
    """The 95 % interval of the difference of two shares on the same examples.

    Source: Agresti and Min 2005, "Simple improved confidence intervals for comparing matched
    proportions": Wald's interval after half an example more in each of the four cells.
    """
    count, less, more = examples + 2, lost + 0.5, won + 0.5
    middle = (more - less) / count
    half = Z * math.sqrt(less + more - (more - less) ** 2 / count) / count
    return max(middle - half, -1.0), min(middle + half, 1.0)
