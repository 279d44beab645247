"""LLaMA (Vicuna), and what differs from it in sizes and biases: Mistral and Qwen2.

The batched decoder has one operator each for rotation and normalisation. Traced as in transformers,
rotary embeddings and RMSNorm are two dozen small operators a layer: a fifth of the time of a step
that reads weights of four bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2RMSNorm

from iblip.export.checkpoint.cache_shape import CacheShape
from iblip.export.components.component import Component
from iblip.export.components.decoder_only import decoder_only
from iblip.export.components.rms_norm import rms_norm
from iblip.export.components.rope import with_fixed_angles
from iblip.export.components.slots import Slots, attend

KINDS: Mapping[str, type[PreTrainedModel]] = {
    "llama": LlamaForCausalLM,
    "mistral": MistralForCausalLM,
    "qwen2": Qwen2ForCausalLM,
}
"""The text config's `model_type` to transformers' class. Their layers are alike, and differ in
biases and in sliding windows, which a build's sequences do not exceed (`CacheShape.positions`)."""

ATTENTIONS = (LlamaAttention, MistralAttention, Qwen2Attention)
NORMS = (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm)


class SlotAttention(LlamaAttention):
    """Attention whose operator also applies the rotary embedding to queries and keys."""

    def forward(  # type: ignore[override]
        self, hidden_states: torch.Tensor, *, slots: Slots, **_: Any
    ) -> tuple[torch.Tensor, None]:
        """`[batch, sequence, hidden]` in and out, and no attention weights."""
        mixed = attend(
            self.layer_idx,
            self.q_proj(hidden_states),
            self.k_proj(hidden_states),
            self.v_proj(hidden_states),
            self.config.num_attention_heads,
            self.scaling,
            slots,
        )
        return self.o_proj(mixed), None


class FusedRMSNorm(LlamaRMSNorm):
    """RMSNorm as the one operator that ONNX Runtime has for it; sums are float32."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Any float dtype in and out, the shape unchanged."""
        return rms_norm(hidden_states, self.weight, float(self.variance_epsilon))


def llama(config: Any, *, precision: str) -> tuple[Component, ...]:
    """Returns the graphs of a language model of `KINDS`; `config` is the whole checkpoint's.

    Raises:
        CheckpointError: its rotary embedding cannot be used.
    """
    text_config = with_fixed_angles(config.text_config)
    kind, embedding = KINDS[text_config.model_type], "language_model.model.embed_tokens"
    return decoder_only(kind, text_config, embedding, precision=precision, fuse=fuse)


def fuse(model: Any) -> Sequence[torch.Tensor]:
    """Replaces normalisation, and attention if its operator can apply the rotary embedding.

    It can if the width of heads is a multiple of 16.

    Returns:
        Cosines and sines, `[positions, head_dim / 2]` each; empty if attention is not replaced.
    """
    shape, rotary = CacheShape.from_config(model.config), model.model.rotary_emb
    rotates = shape.head_dim % 16 == 0
    for module in model.modules():
        if type(module) in NORMS:
            module.__class__ = FusedRMSNorm
        elif rotates and type(module) in ATTENTIONS:
            module.__class__ = SlotAttention
    if not rotates:
        return ()
    tables = rotary(torch.zeros(1), torch.arange(shape.positions)[None])
    # Both halves of the last axis are the same.
    return [table[0, :, : table.shape[2] // 2].contiguous() for table in tables]
