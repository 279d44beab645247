"""`vision_encoder`: pixels to image features, rescaling and normalisation included."""

from __future__ import annotations

from typing import Any

import torch
from transformers import InstructBlipVisionModel
from transformers.models.instructblip.modeling_instructblip import InstructBlipVisionEmbeddings

from iblip.export.artifact.contract import Contract, TensorSpec
from iblip.export.components.attention import module_from_config
from iblip.export.components.component import Component
from iblip.export.precision import BETWEEN

PIXEL_SETTINGS = ("rescale_factor", "image_mean", "image_std")
"""What is computed in the graph, of the image processor's settings."""


class PatchEmbeddings(InstructBlipVisionEmbeddings):
    """The ViT's embeddings, with the convolution over patches as one matrix product.

    Its stride is the size of its kernel, so it is a linear layer over the values of each patch. In
    the opset of the graphs, ONNX has that product in bfloat16, but no convolution. The values of a
    patch are in the order of the pixels, so that rows of a patch are moved and not single values;
    the weights are reordered once, when a graph is opened.
    """

    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False
    ) -> torch.Tensor:
        """`[batch, height, width, 3]` to `[batch, patches, d_vision]`, in the positions' dtype.

        The product is computed in the dtype of its weights, which may be narrower.
        """
        weight = self.patch_embedding.weight  # [d_vision, 3, size, size]
        size = weight.shape[-1]
        batch, height, width, channels = pixel_values.shape
        rows, columns, row = height // size, width // size, size * channels
        if height % size or width % size:  # the rest at the edge is not read
            pixel_values = pixel_values[:, : rows * size, : columns * size]
        values = pixel_values.to(weight.dtype).reshape(batch, rows, size, columns, row)
        values = values.transpose(2, 3).reshape(batch, rows * columns, size * row)
        matrix = weight.permute(0, 2, 3, 1).flatten(1)  # [d_vision, size * size * 3]
        patches = torch.nn.functional.linear(values, matrix, self.patch_embedding.bias)
        first = self.class_embedding.expand(batch, 1, -1)
        joined = torch.cat([first, patches.to(first.dtype)], dim=1)
        return joined + self.position_embedding


class VisionEncoder(torch.nn.Module):
    """The ViT, preceded by the arithmetic of the image processor.

    Args:
        config: the checkpoint's vision config.
        processor: the image processor's own `PIXEL_SETTINGS`.
        dtype: of the features.
    """

    image_mean: torch.Tensor
    image_std: torch.Tensor

    def __init__(self, config: Any, processor: dict[str, Any], dtype: str) -> None:
        super().__init__()
        self.dtype = getattr(torch, dtype)
        self.vision_model = module_from_config(InstructBlipVisionModel, config)
        self.vision_model.embeddings.__class__ = PatchEmbeddings
        self.rescale_factor = float(processor["rescale_factor"])
        for name in ("image_mean", "image_std"):
            values = torch.tensor(processor[name], dtype=torch.float32)
            self.register_buffer(name, values, persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """`pixels` uint8 `[batch, height, width, 3]` to `[batch, patches, d_vision]`."""
        values = pixels.to(torch.float32) * self.rescale_factor
        values = (values - self.image_mean) / self.image_std
        features: torch.Tensor = self.vision_model(pixel_values=values).last_hidden_state
        return features.to(self.dtype)


def vision_encoder(config: Any, processor: dict[str, Any], *, precision: str) -> Component:
    """Returns the component for a checkpoint's `config` (such as an `InstructBlipConfig`)."""
    vision = config.vision_config
    size, patches = vision.image_size, (vision.image_size // vision.patch_size) ** 2 + 1
    pixels = TensorSpec(name="pixels", dtype="uint8", axes=("batch", size, size, 3))
    image_embeds = image_embeds_spec(patches, vision.hidden_size, precision)
    return Component(
        component="vision_encoder",
        graph="model",
        precision=precision,
        contract=Contract(inputs=(pixels,), outputs=(image_embeds,)),
        kind=VisionEncoder,
        settings=(vision, {name: processor[name] for name in PIXEL_SETTINGS}, BETWEEN[precision]),
    )


def image_embeds_spec(patches: int, hidden_size: int, precision: str) -> TensorSpec:
    """Returns the spec of image features, from the vision encoder to the Q-Former."""
    axes = ("batch", patches, hidden_size)
    return TensorSpec(name="image_embeds", dtype=BETWEEN[precision], axes=axes)
