"""`qformer`: image features and an instruction to the visual prompt, projection included."""

from __future__ import annotations

from typing import Any

import torch
from transformers import InstructBlipQFormerModel

from export.components.attention import module_from_config, padding_mask
from export.components.component import Component
from export.components.vision_encoder import image_embeds_spec
from export.contract import Contract, TensorSpec
from export.precision import DTYPES


class InstructionQFormer(torch.nn.Module):
    """InstructBLIP's Q-Former, which reads the instruction, and the projection behind it.

    Args:
        config: the checkpoint's whole config.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.qformer_config.hidden_size
        self.query_tokens = torch.nn.Parameter(torch.zeros(1, config.num_query_tokens, width))
        self.qformer = module_from_config(InstructBlipQFormerModel, config.qformer_config)
        self.language_projection = torch.nn.Linear(width, config.text_config.hidden_size)

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
        batch, queries = image_embeds.shape[0], self.query_tokens.shape[1]
        dtype = self.language_projection.weight.dtype
        seen = torch.ones((batch, queries), dtype=torch.int64)
        mask = torch.cat([seen, qformer_attention_mask], dim=1)  # [batch, queries + instruction]
        hidden = self.qformer(
            input_ids=qformer_input_ids,
            attention_mask=padding_mask(mask),
            query_embeds=self.query_tokens.expand(batch, -1, -1),
            encoder_hidden_states=image_embeds.to(dtype),
        ).last_hidden_state
        visual_prompt: torch.Tensor = self.language_projection(hidden[:, :queries])
        return visual_prompt


def instruction_qformer(config: Any, *, precision: str, input_precision: str) -> Component:
    """The component for this checkpoint's `config` (an `InstructBlipConfig`).

    Args:
        config: the checkpoint's config.
        precision: that it computes in.
        input_precision: of the vision encoder, whose output it takes.
    """
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    ids = ("batch", "instruction")
    inputs = (
        image_embeds_spec(patches, vision.hidden_size, input_precision),
        TensorSpec(name="qformer_input_ids", dtype="int64", axes=ids),
        TensorSpec(name="qformer_attention_mask", dtype="int64", axes=ids),
    )
    output = TensorSpec(
        name="visual_prompt",
        dtype=DTYPES[precision],
        axes=("batch", config.num_query_tokens, config.text_config.hidden_size),
    )
    return Component(
        component="qformer",
        graph="model",
        precision=precision,
        contract=Contract(inputs=inputs, outputs=(output,)),
        module=lambda: InstructionQFormer(config),
    )
