"""Projectors: what makes a visual prompt of image features, as each family does it.

A projector first makes `readings`, which the auxiliary heads read too, then the visual prompt.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .architecture import MERGED
from .batches import Encoder


class Queries(nn.Module):
    """Holds a model's query tokens, so that a stage can train and store them."""

    def __init__(self, tokens: nn.Parameter) -> None:
        super().__init__()
        self.tokens = tokens


class Projector(Protocol):
    """From image features to the language model's width."""

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What a Q-Former's own stage trains, by name; nothing where there is no Q-Former."""

    def readings(self, image_embeds: Tensor, prompts: list[str]) -> Tensor:
        """Float32 `[batch, tokens, width]` of float32 `[batch, patches + 1, width]`."""

    def visual_prompt(self, readings: Tensor) -> Tensor:
        """Float32 `[batch, tokens, language width]`."""


class PlainQFormer:
    """BLIP-2's: queries look at the image; the prompt is not read.

    Args:
        model: has `qformer`, `query_tokens` and `language_projection`.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.modules: dict[str, nn.Module] = {
            "qformer": model.qformer,
            "queries": Queries(model.query_tokens),
        }

    def readings(self, image_embeds: Tensor, prompts: list[str]) -> Tensor:
        """The queries' last states."""
        tokens = self.model.query_tokens.expand(len(image_embeds), -1, -1)
        hidden: Tensor = self.model.qformer(
            query_embeds=tokens, encoder_hidden_states=image_embeds
        ).last_hidden_state
        return hidden

    def visual_prompt(self, readings: Tensor) -> Tensor:
        """The queries, projected."""
        projected: Tensor = self.model.language_projection(readings)
        return projected


class InstructionQFormer(PlainQFormer):
    """InstructBLIP's: the queries stand beside the question.

    Args:
        model: as for `PlainQFormer`.
        encoder: has the Q-Former's tokenizer.
    """

    def __init__(self, model: Any, encoder: Encoder) -> None:
        super().__init__(model)
        self.encoder = encoder

    def readings(self, image_embeds: Tensor, prompts: list[str]) -> Tensor:
        """The queries' last states; the text's are left."""
        ids, mask = self.encoder.instruction(prompts)
        tokens = self.model.query_tokens.expand(len(prompts), -1, -1)
        mask = torch.cat([mask.new_ones(tokens.shape[:2]), mask], dim=1)
        hidden: Tensor = self.model.qformer(
            input_ids=ids,
            attention_mask=mask,
            query_embeds=tokens,
            encoder_hidden_states=image_embeds,
        ).last_hidden_state
        return hidden[:, : tokens.shape[1]]


class PatchMerge:
    """MiniGPT-4's on LLaMA-2: neighbouring patches side by side, then a linear layer.

    Args:
        model: has `language_projection`.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.modules: dict[str, nn.Module] = {}

    def readings(self, image_embeds: Tensor, prompts: list[str]) -> Tensor:
        """The visual prompt itself, so that heads teach the linear layer."""
        projected: Tensor = self.model.language_projection(merged_patches(image_embeds))
        return projected

    def visual_prompt(self, readings: Tensor) -> Tensor:
        """As it is."""
        return readings


def merged_patches(image_embeds: Tensor) -> Tensor:
    """`[batch, 1 + patches, width]` to `[batch, patches / 4, 4 · width]`, the class token dropped.

    Four patches that follow each other row by row stand side by side (MiniGPT-4, minigpt4.py,
    `encode_img`).
    """
    patches = image_embeds[:, 1:]
    return patches.reshape(len(patches), -1, MERGED * patches.shape[-1])
