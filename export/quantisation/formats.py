"""The numbers of eight bits that a product's two factors become: whole ones, or floats.

Both are symmetric: a number times a scale, with no zero point but 0.
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
        name: what a weight's numbers are called behind its own name.
        most: the greatest number.
        dtype: as ONNX has it.
        numpy: the same as numpy has it.
        nearest: float32 within `most` of 0 to the nearest number, as float32.
    """

    name: str
    most: float
    dtype: ir.DataType
    numpy: npt.DTypeLike
    nearest: Callable[[torch.Tensor], torch.Tensor]

    def rounded(self, values: torch.Tensor, scales: torch.Tensor | float) -> torch.Tensor:
        """The numbers that stand for `values`, as float32; what is beyond the range is cut off."""
        return self.nearest((values / scales).clamp_(-self.most, self.most))

    def stored(self, numbers: torch.Tensor) -> npt.NDArray[Any]:
        """Numbers that `rounded` made, in the format's own dtype."""
        return array_from_tensor(numbers).astype(self.numpy)


def _to_e4m3(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.float8_e4m3fn).to(torch.float32)


FORMATS: Mapping[str, Format] = {
    # -128 is not used, so that 0 is the middle.
    "int": Format(
        name="int8", most=127, dtype=ir.DataType.INT8, numpy=np.int8, nearest=torch.round
    ),
    # No infinity: what is beyond 448 would be no number (arXiv 2209.05433, section 3).
    "e4m3": Format(
        name="e4m3",
        most=448,
        dtype=ir.DataType.FLOAT8E4M3FN,
        numpy=ml_dtypes.float8_e4m3fn,
        nearest=_to_e4m3,
    ),
}
"""By `export.quantisation.options.Quantisation.format`."""


def as_scales(scales: torch.Tensor, dtype: str) -> torch.Tensor:
    """Scales as the graph keeps them, as float32: rounded up, so that no number leaves its range.

    What is 0 becomes 1: there is nothing to scale.

    Args:
        scales: float32, not below 0.
        dtype: what the graph computes in around the MatMul, a key of
            `export.artifact.contract.DTYPES`.
    """
    scales = torch.where(scales == 0, 1, scales)
    kept = scales.to(getattr(torch, dtype))
    less = kept.to(torch.float32) < scales
    above = torch.nextafter(kept, torch.full_like(kept, torch.inf)) if less.any() else kept
    return torch.where(less, above, kept).to(torch.float32)


def array_of_scales(scales: torch.Tensor, dtype: str) -> npt.NDArray[Any]:
    """What `as_scales` made, in that dtype."""
    return scales.numpy().astype(DTYPES[dtype])
