"""LLaMA (Vicuna): `embed_tokens`, and one `decoder` graph for prefill (past 0) and decode.

`batched_decoder` is the same decoder over slots: see `export.components.slots`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.onnx.ops import symbolic
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm

from export.components.attention import causal_mask, module_from_config
from export.components.component import Component
from export.components.language_model import (
    IDS,
    cache_from_tensors,
    cache_specs,
    embed_tokens,
    inputs_embeds_spec,
    logits_spec,
    tensors_from_cache,
)
from export.components.slots import NAME as SLOTS
from export.components.slots import Slots, attend
from export.contract import Contract, TensorSpec


class LlamaDecoder(torch.nn.Module):
    """Embeddings and past keys and values to logits and present keys and values.

    Args:
        config: the checkpoint's text config.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.language_model = module_from_config(LlamaForCausalLM, config)

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past_key_values: list[torch.Tensor],
    ) -> list[torch.Tensor]:
        """Gives `logits` float32 `[batch, sequence, vocab]`, then every present key and value.

        Args:
            inputs_embeds: `[batch, sequence, hidden]`.
            attention_mask: int64 `[batch, total]`, total = past + sequence; 1 where a token is.
            position_ids: int64 `[batch, sequence]`.
            past_key_values: `[batch, kv_heads, past, head_dim]` each; past may be 0.
        """
        cache = cache_from_tensors(past_key_values)
        logits = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=causal_mask(attention_mask, inputs_embeds.shape[1]),
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        ).logits
        return [logits.to(torch.float32), *tensors_from_cache(cache)]


class SlotAttention(LlamaAttention):
    """Attention whose queries and keys are turned by the operator that attends.

    transformers turns them before; traced, that is a dozen small operators a layer.
    """

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
        return symbolic(
            "SimplifiedLayerNormalization",
            (hidden_states, self.weight),
            {"axis": -1, "epsilon": float(self.variance_epsilon), "stash_type": 1},
            dtype=hidden_states.dtype,
            shape=list(hidden_states.shape),
            version=1,
        )


LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Kinds of rotary embedding in transformers whose angles change with a prompt's length."""

FUSED = {LlamaAttention: SlotAttention, LlamaRMSNorm: FusedRMSNorm}
"""What takes the place of transformers' own modules, on the same weights."""


class LlamaBatchedDecoder(torch.nn.Module):
    """Embeddings and slots to logits and the same slots.

    Queries and keys are turned by the operator that attends, where it can: heads are a multiple of
    16 wide, and angles depend on the position alone.

    Args:
        config: the checkpoint's text config.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.language_model = module_from_config(LlamaForCausalLM, config, SLOTS)
        rotary = self.language_model.model.rotary_emb
        turns = config.head_dim % 16 == 0 and rotary.rope_type not in LENGTH_DEPENDENT
        for module in self.language_model.modules():
            if turns or not isinstance(module, LlamaAttention):
                module.__class__ = FUSED.get(type(module), type(module))
        tables = rotary(torch.zeros(1), torch.arange(config.max_position_embeddings)[None])
        self.tables = ("cos", "sin") if turns else ()
        for name, table in zip(self.tables, tables, strict=False):
            # Both halves of the last axis are the same.
            self.register_buffer(name, table[0, :, : table.shape[2] // 2].contiguous())

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        position_ids: torch.Tensor,
        past_key_values: list[torch.Tensor],
    ) -> list[torch.Tensor]:
        """Gives `logits` float32 `[batch, sequence, vocab]`, then every slot with its new tokens.

        Args:
            inputs_embeds: `[batch, sequence, hidden]`; sequence above 1 only where batch is 1.
            position_ids: int64 `[batch, sequence]`, where in its slot each token is put.
            past_key_values: `[batch, kv_heads, capacity, head_dim]` each.
        """
        slots = Slots(
            past=past_key_values,
            last=position_ids[:, -1].to(torch.int32),
            rotary=[self.get_buffer(name) for name in self.tables],
        )
        logits = self.language_model(
            inputs_embeds=inputs_embeds,
            # Of four axes, so that transformers makes none of its own.
            attention_mask=inputs_embeds.new_zeros(1, 1, 1, 1),
            position_ids=position_ids,
            past_key_values=slots,
            use_cache=True,
            slots=slots,
        ).logits
        return [logits.to(torch.float32), *slots.present]


def llama(config: Any, *, precision: str) -> tuple[Component, ...]:
    """The graphs of this checkpoint's LLaMA; `config` is the whole checkpoint's."""
    text = config.text_config
    layers, heads = text.num_hidden_layers, text.num_key_value_heads
    head_dim = text.head_dim or text.hidden_size // text.num_attention_heads
    inputs = (
        inputs_embeds_spec(text.hidden_size, precision),
        TensorSpec(name="attention_mask", dtype="int64", axes=("batch", "total")),
        TensorSpec(name="position_ids", dtype="int64", axes=IDS),
        *cache_specs("past_key_values", layers, heads, "past", head_dim, precision),
    )
    outputs = (
        logits_spec(text.vocab_size),
        *cache_specs("present_key_values", layers, heads, "total", head_dim, precision),
    )
    decoder = Component(
        component="language_model",
        graph="decoder",
        precision=precision,
        contract=Contract(inputs=inputs, outputs=outputs),
        module=lambda: LlamaDecoder(text),
    )
    batched_decoder = Component(
        component="language_model",
        graph="batched_decoder",
        precision=precision,
        contract=Contract(
            inputs=(
                inputs_embeds_spec(text.hidden_size, precision),
                TensorSpec(name="position_ids", dtype="int64", axes=IDS),
                *cache_specs("past_key_values", layers, heads, "capacity", head_dim, precision),
            ),
            outputs=(
                logits_spec(text.vocab_size),
                *cache_specs("present_key_values", layers, heads, "capacity", head_dim, precision),
            ),
        ),
        module=lambda: LlamaBatchedDecoder(text),
    )
    embed = embed_tokens(text, "language_model.model.embed_tokens", precision=precision)
    return embed, decoder, batched_decoder
