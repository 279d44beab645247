"""`qformer`: image features, and an instruction where one is read, to the visual prompt.

The projection to the language model's width is included. Where a model has no Q-Former, this is the
projection alone, behind a merge of neighbouring patches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import Blip2QFormerModel, InstructBlipQFormerModel, PreTrainedModel

from iblip.export.artifact.contract import Contract, TensorSpec
from iblip.export.components.attention import module_from_config, padding_mask
from iblip.export.components.component import Component
from iblip.export.components.vision_encoder import image_embeds_spec
from iblip.export.families.family import Projector
from iblip.export.precision import BETWEEN


class _QFormer(torch.nn.Module):
    """The query tokens, a Q-Former, and the projection behind it.

    Args:
        config: the checkpoint's Q-Former config.
        queries: number of query tokens.
        d_llm: width of the visual prompt.
        dtype: of the visual prompt.
    """

    kind: type[PreTrainedModel]

    def __init__(self, config: Any, queries: int, d_llm: int, dtype: str) -> None:
        super().__init__()
        self.dtype = getattr(torch, dtype)
        width = config.hidden_size
        self.query_tokens = torch.nn.Parameter(torch.zeros(1, queries, width))
        self.qformer = module_from_config(self.kind, config)
        self.language_projection = torch.nn.Linear(width, d_llm)

    def _inputs(self, image_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Queries [batch, queries, width], and image features in the dtype that is computed in.
        queries = self.query_tokens.expand(image_embeds.shape[0], -1, -1)
        return queries, image_embeds.to(self.language_projection.weight.dtype)


class InstructionQFormer(_QFormer):
    """InstructBLIP's Q-Former, which reads the instruction."""

    kind = InstructBlipQFormerModel

    def forward(
        self,
        image_embeds: torch.Tensor,
        qformer_input_ids: torch.Tensor,
        qformer_attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Gives `visual_prompt` `[batch, queries, d_llm]`.

        Args:
            image_embeds: `[batch, patches, d_vision]`.
            qformer_input_ids: int64 `[batch, instruction]`.
            qformer_attention_mask: int64 `[batch, instruction]`, 1 where a token is.
        """
        queries, features = self._inputs(image_embeds)
        seen = torch.ones(queries.shape[:2], dtype=torch.int64)
        mask = torch.cat([seen, qformer_attention_mask], dim=1)  # [batch, queries + instruction]
        hidden = self.qformer(
            input_ids=qformer_input_ids,
            attention_mask=padding_mask(mask),
            query_embeds=queries,
            encoder_hidden_states=features,
        ).last_hidden_state
        visual_prompt: torch.Tensor = self.language_projection(hidden[:, : queries.shape[1]])
        return visual_prompt.to(self.dtype)


class QueryQFormer(_QFormer):
    """BLIP-2's Q-Former, which sees the image alone."""

    kind = Blip2QFormerModel

    def forward(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """`image_embeds` `[batch, patches, d_vision]` to `visual_prompt` `[batch, queries, d_llm]`.

        The model's parts are called one by one: its own `forward` casts the image features to the
        dtype of its first LayerNorm, which stays in float32.
        """
        queries, features = self._inputs(image_embeds)
        hidden = self.qformer.encoder(
            self.qformer.layernorm(queries),
            encoder_hidden_states=features,
            query_length=queries.shape[1],
        ).last_hidden_state
        visual_prompt: torch.Tensor = self.language_projection(hidden)
        return visual_prompt.to(self.dtype)


class PatchMerge(torch.nn.Module):
    """MiniGPT-4's projector on LLaMA-2: no Q-Former, one linear layer over neighbouring patches.

    Source: Vision-CAIR/MiniGPT-4, `minigpt4/models/minigpt4.py`, `encode_img`.

    Args:
        d_vision: width of the image features.
        merged: number of patches that a row of the visual prompt is made of.
        d_llm: width of the visual prompt.
        dtype: of the visual prompt.
    """

    def __init__(self, d_vision: int, merged: int, d_llm: int, dtype: str) -> None:
        super().__init__()
        self.dtype = getattr(torch, dtype)
        self.merged = merged
        self.language_projection = torch.nn.Linear(merged * d_vision, d_llm)

    def forward(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """`image_embeds` `[batch, patches, d_vision]` to `visual_prompt` `[batch, queries, d_llm]`.

        The class token is left out. A row of the visual prompt is made of `merged_patches` patches
        that follow one another in row-major order, so they are neighbours in a row of the image.
        """
        features = image_embeds[:, 1:].to(self.language_projection.weight.dtype)
        batch, patches, width = features.shape
        merged = features.reshape(batch, patches // self.merged, self.merged * width)
        visual_prompt: torch.Tensor = self.language_projection(merged)
        return visual_prompt.to(self.dtype)


INSTRUCTION = tuple(
    TensorSpec(name=name, dtype="int64", axes=("batch", "instruction"))
    for name in ("qformer_input_ids", "qformer_attention_mask")
)
"""Inputs of a Q-Former that reads the instruction."""


def _sizes(config: Any) -> tuple[Any, ...]:
    return config.qformer_config, config.num_query_tokens


def _merged_sizes(config: Any) -> tuple[Any, ...]:
    return config.vision_config.hidden_size, config.merged_patches


PROJECTORS: Mapping[
    Projector,
    tuple[type[torch.nn.Module], Callable[[Any], tuple[Any, ...]], tuple[TensorSpec, ...]],
] = {
    "instruction_qformer": (InstructionQFormer, _sizes, INSTRUCTION),
    "qformer": (QueryQFormer, _sizes, ()),
    "patch_merge": (PatchMerge, _merged_sizes, ()),
}
"""A projector's module, its first settings, and its inputs besides the image's features."""


def qformer(
    config: Any, *, projector: Projector, precision: str, input_precision: str
) -> Component:
    """Returns the component for a checkpoint's `config`.

    Args:
        config: the checkpoint's.
        projector: as the checkpoint says.
        precision: that it computes in.
        input_precision: of the vision encoder, whose output it takes.
    """
    kind, sizes, text = PROJECTORS[projector]
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    image_embeds = image_embeds_spec(patches, vision.hidden_size, input_precision)
    output = TensorSpec(
        name="visual_prompt",
        dtype=BETWEEN[precision],
        axes=("batch", config.num_query_tokens, config.text_config.hidden_size),
    )
    return Component(
        component="qformer",
        graph="model",
        precision=precision,
        contract=Contract(inputs=(image_embeds, *text), outputs=(output,)),
        kind=kind,
        settings=(*sizes(config), config.text_config.hidden_size, BETWEEN[precision]),
    )
