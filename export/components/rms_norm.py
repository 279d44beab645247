"""RMSNorm as the one operator that ONNX Runtime has for it, which is not an ONNX operator."""

from __future__ import annotations

import torch
from torch.onnx.ops import symbolic


def rms_norm(values: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Normalises over the last axis; sums are float32.

    Args:
        values: `[…, width]`, any float dtype.
        weight: `[width]`, in the dtype of the result.
        epsilon: added to the mean square.

    Returns:
        `[…, width]`.
    """
    return symbolic(
        "SimplifiedLayerNormalization",
        (values, weight),
        {"axis": -1, "epsilon": epsilon, "stash_type": 1},
        dtype=weight.dtype,
        shape=list(values.shape),
        version=1,
    )
