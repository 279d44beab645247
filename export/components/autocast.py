"""Modules that compute as under torch's autocast: matrices in a narrow dtype, all else in float32.

LAVIS runs its vision encoder this way. The result of a linear layer or a convolution stays in the
narrow dtype until it meets something wider, such as the residual stream. The one convolution is of
the patches; `export.components.vision_encoder` computes it in the dtype of its weights.
"""

from __future__ import annotations

import torch


class NarrowLinear(torch.nn.Linear):
    """A linear layer that takes any float dtype, and computes and returns its weights' dtype."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """`[…, in]` to `[…, out]`."""
        return super().forward(values.to(self.weight.dtype))


def autocast(module: torch.nn.Module) -> None:
    """Replaces the class of every linear layer; the caller casts the parameters."""
    for child in module.modules():
        if type(child) is torch.nn.Linear:
            child.__class__ = NarrowLinear


def is_matrix(module: torch.nn.Module) -> bool:
    """Whether the module's parameters are to be in the narrow dtype."""
    return isinstance(module, NarrowLinear | torch.nn.Conv2d)
