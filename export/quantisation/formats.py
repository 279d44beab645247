"""The formats of eight bits for weights and activations of a MatMul: integers, or floats.

Both are symmetric: a value is a number times a scale, and the zero point is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from iblip.export.artifact.contract import DTYPES
from iblip.export.weights.casts import array_from_tensor


@dataclass(frozen=True, kw_only=True)
class Format:
    """One row of `FORMATS`.

    Attributes:
        name: follows a weight's name in that of its quantised weights.
        largest: the greatest number.
        dtype: ONNX's dtype.
        numpy: numpy's dtype.
        nearest: rounds float32 from `-largest` to `largest` to the nearest number, as float32.
    """

    name: str
    largest: float
    dtype: ir.DataType
    numpy: npt.DTypeLike
    nearest: Callable[[torch.Tensor], torch.Tensor]

    def quantise(self, values: torch.Tensor, scales: torch.Tensor | float) -> torch.Tensor:
        """Returns the numbers that stand for `values`, as float32, clipped to the range."""
        return self.nearest((values / scales).clamp_(-self.largest, self.largest))

    def store(self, numbers: torch.Tensor) -> npt.NDArray[Any]:
        """Returns numbers from `quantise` in the format's own dtype."""
        return array_from_tensor(numbers).astype(self.numpy)


def _to_e4m3(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.float8_e4m3fn).to(torch.float32)


FORMATS: Mapping[str, Format] = {
    # -128 is not used, so that 0 is the middle.
    "int": Format(
        name="int8", largest=127, dtype=ir.DataType.INT8, numpy=np.int8, nearest=torch.round
    ),
    # There is no infinity: what is beyond 448 would be NaN (arXiv 2209.05433, section 3).
    "e4m3": Format(
        name="e4m3",
        largest=448,
        dtype=ir.DataType.FLOAT8E4M3FN,
        numpy=ml_dtypes.float8_e4m3fn,
        nearest=_to_e4m3,
    ),
}
"""Formats by `export.quantisation.options.Quantisation.format`."""


def round_scales(scales: torch.Tensor, dtype: str) -> torch.Tensor:
    """Rounds scales up to what `dtype` can hold, so that no number leaves its range.

    A scale of 0 becomes 1: there is nothing to scale.

    Args:
        scales: float32, not below 0.
        dtype: what the graph computes in around the MatMul, a key of
            `export.artifact.contract.DTYPES`.

    Returns:
        The scales as float32.
    """
    scales = torch.where(scales == 0, 1, scales)
    rounded = scales.to(getattr(torch, dtype))
    less = rounded.to(torch.float32) < scales
    above = torch.nextafter(rounded, torch.full_like(rounded, torch.inf)) if less.any() else rounded
    return torch.where(less, above, rounded).to(torch.float32)


def array_of_scales(scales: torch.Tensor, dtype: str) -> npt.NDArray[Any]:
    """Returns scales from `round_scales` as an array of that dtype."""
    return scales.numpy().astype(DTYPES[dtype])
