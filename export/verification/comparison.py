"""Compares tensors with the reference's, and checks the limits of their precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on the difference of a graph's outputs from the float32 reference.

    Attributes:
        max_abs: the largest absolute difference of any element; `None` sets no limit.
        cosine: the smallest cosine between an output and its reference; `None` sets no limit.
    """

    max_abs: float | None = None
    cosine: float | None = None


LIMITS: Mapping[str, Limits] = {
    "fp32": Limits(max_abs=1e-4),
    "fp16": Limits(cosine=0.9999),
    "bf16": Limits(cosine=0.999),
    "lavis": Limits(cosine=0.9999),
    "int8": Limits(cosine=0.99),
    "int4": Limits(cosine=0.95),
    "int4-fp16": Limits(cosine=0.95),
    "int4-bf16": Limits(cosine=0.95),
    "int8-bf16": Limits(cosine=0.99),
    "int8-fp16": Limits(cosine=0.99),
    "fp8": Limits(cosine=0.99),
}
"""By precision. fp16 rounds each value to 11 bits, so that its errors grow with the values: an
angle is the fair measure there, and the greedy text that `verify` compares afterwards. Weights of
eight or four bits are other weights: the angle only shows that they are the right ones."""


def limits_of(precision: str, feed: Mapping[str, npt.NDArray[Any]]) -> Limits:
    """The limits of a graph: fp32 that reads what another component hands over in fp16 has fp16's.

    Args:
        precision: of the graph's component.
        feed: its inputs by name.
    """
    reads_fp16 = any(array.dtype == np.float16 for array in feed.values())
    return LIMITS["fp16" if precision == "fp32" and reads_fp16 else precision]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One output of one case against its reference. True where the limits are kept.

    Attributes:
        case: name of the input (`batch 2, ragged`).
        output: the tensor's name.
        max_abs: largest absolute difference, in the tensor's own unit.
        cosine: between the two, flattened; 1 is equal up to scale.
        limits: that the two must keep.
    """

    case: str
    output: str
    max_abs: float
    cosine: float
    limits: Limits

    def __bool__(self) -> bool:
        close = self.limits.max_abs is None or self.max_abs <= self.limits.max_abs
        return close and (self.limits.cosine is None or self.cosine >= self.limits.cosine)

    def __str__(self) -> str:
        figures = f"max abs {self.max_abs:.2e}, cosine {self.cosine:.7f}"
        return f"{self.output}, {self.case}: {figures}"


def compare(
    actual: npt.NDArray[Any],
    expected: npt.NDArray[Any],
    *,
    case: str,
    output: str,
    limits: Limits,
) -> Comparison:
    """Compares two arrays of one shape. A value that is not finite gives infinity and cosine 0."""
    a, b = actual.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Comparison(case=case, output=output, max_abs=np.inf, cosine=0.0, limits=limits)
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return Comparison(
        case=case,
        output=output,
        max_abs=float(np.abs(a - b).max(initial=0.0)),
        cosine=float(a @ b) / scale if scale else float(np.array_equal(a, b)),
        limits=limits,
    )


def figures(comparisons: list[Comparison]) -> dict[str, Any]:
    """Returns the largest difference and smallest cosine of all, JSON-ready."""
    return {
        "passed": all(comparisons),
        "cases": len({comparison.case for comparison in comparisons}),
        "max_abs": max(comparison.max_abs for comparison in comparisons),
        "cosine": min(comparison.cosine for comparison in comparisons),
        "limits": {k: v for k, v in asdict(comparisons[0].limits).items() if v is not None},
    }
