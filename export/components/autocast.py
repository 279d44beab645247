"""Modules that compute as under torch's autocast: matrices in a narrow dtype, all else in float32.

LAVIS runs its vision encoder so. What a linear layer or a convolution gives stays in the narrow
dtype until something wider joins it, as the residual stream does.
"""

from __future__ import annotations

import torch
from transformers.models.instructblip.modeling_instructblip import InstructBlipVisionEmbeddings


class NarrowLinear(torch.nn.Linear):
    """A linear layer that takes any float dtype, and computes and gives its weights' own."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """`[…, in]` to `[…, out]`."""
        return super().forward(values.to(self.weight.dtype))


class NarrowConv2d(torch.nn.Conv2d):
    """The same of a convolution."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """`[batch, in, height, width]` to `[batch, out, …]`."""
        return super().forward(values.to(self.weight.dtype))


class WideEmbeddings(InstructBlipVisionEmbeddings):
    """Patches in the convolution's dtype, class token and positions in their own.

    transformers casts these to the convolution's.
    """

    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False
    ) -> torch.Tensor:
        """`[batch, 3, height, width]` to `[batch, patches, width]`, in the positions' dtype."""
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(patches.shape[0], 1, -1)
        joined = torch.cat([first, patches.to(first.dtype)], dim=1)
        return joined + self.position_embedding


KINDS: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    torch.nn.Linear: NarrowLinear,
    torch.nn.Conv2d: NarrowConv2d,
    InstructBlipVisionEmbeddings: WideEmbeddings,
}
"""What a module becomes."""


def autocast(module: torch.nn.Module) -> None:
    """Has every module below this one compute so. Parameters are the caller's to narrow."""
    for child in module.modules():
        child.__class__ = KINDS.get(type(child), type(child))


def is_matrix(module: torch.nn.Module) -> bool:
    """Whether the module's parameters are narrow."""
    return isinstance(module, NarrowLinear | NarrowConv2d)
