"""Modules that compute as under torch's autocast: matrices in a narrow dtype, all else in float32.

LAVIS runs its vision encoder this way. The result of a linear layer or a convolution stays in the
narrow dtype until it meets something wider, such as the residual stream.
"""

from __future__ import annotations

import torch
from transformers.models.instructblip.modeling_instructblip import InstructBlipVisionEmbeddings


class NarrowLinear(torch.nn.Linear):
    """A linear layer that takes any float dtype, and computes and returns its weights' dtype."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """`[…, in]` to `[…, out]`."""
        return super().forward(values.to(self.weight.dtype))


class NarrowConv2d(torch.nn.Conv2d):
    """A convolution that takes any float dtype, and computes and returns its weights' dtype."""

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
"""Replacements of modules, by class."""


def autocast(module: torch.nn.Module) -> None:
    """Replaces the class of every module below this one; the caller casts the parameters."""
    for child in module.modules():
        child.__class__ = KINDS.get(type(child), type(child))


def is_matrix(module: torch.nn.Module) -> bool:
    """Whether the module's parameters are to be in the narrow dtype."""
    return isinstance(module, NarrowLinear | NarrowConv2d)
