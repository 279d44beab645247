"""LLaMA (Vicuna): `embed_tokens`, and one `decoder` graph for prefill (past 0) and decode.

`batched_decoder` is the same decoder over slots: see `export.components.slots`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaForCausalLM

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
from export.components.slots import Slots
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


class LlamaBatchedDecoder(torch.nn.Module):
    """Embeddings and slots to logits and the same slots.

    Args:
        config: the checkpoint's text config.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.language_model = module_from_config(LlamaForCausalLM, config, SLOTS)

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
        slots = Slots(past=past_key_values, last=position_ids[:, -1].to(torch.int32))
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
