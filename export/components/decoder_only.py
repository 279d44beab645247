"""Decoder-only language models: `embed_tokens`, and one `decoder` graph for prefill and decode.

`batched_decoder` is the same decoder over slots: see `export.components.slots`. What a model needs
besides (LLaMA's rotation, OPT's learned positions) is in transformers' own module, which is traced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from iblip.export.artifact.contract import Contract, TensorSpec
from iblip.export.checkpoint.cache_shape import CacheShape
from iblip.export.components.attention import causal_mask, module_from_config
from iblip.export.components.component import Component
from iblip.export.components.language_model import (
    IDS,
    cache_from_tensors,
    cache_specs,
    embed_tokens,
    inputs_embeds_spec,
    logits_spec,
    slot_logits_spec,
    slot_specs,
    tensors_from_cache,
)
from iblip.export.components.slots import NAME as SLOTS
from iblip.export.components.slots import Slots, embed, pick


class Decoder(torch.nn.Module):
    """Embeddings and past keys and values to logits and present keys and values.

    Args:
        kind: transformers' class, a causal language model.
        config: the checkpoint's text config.
    """

    def __init__(self, kind: type[PreTrainedModel], config: Any) -> None:
        super().__init__()
        self.language_model = module_from_config(kind, config)

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


Fuse = Callable[[Any], Sequence[torch.Tensor]]
"""Replaces parts of transformers' module with others on the same weights, each of which is a single
operator of ONNX Runtime. Returns `Slots.rotary`, if they leave the rotation to the attention."""


def fuse_nothing(_: Any) -> Sequence[torch.Tensor]:
    """Leaves transformers' module unchanged, and returns no tables."""
    return ()


class BatchedDecoder(torch.nn.Module):
    """Tokens and slots to logits and the same slots; see `export.components.slots`.

    Args:
        kind: transformers' class, a causal language model.
        config: the checkpoint's text config.
        fuse: changes the module before it is traced.
    """

    def __init__(self, kind: type[PreTrainedModel], config: Any, fuse: Fuse) -> None:
        super().__init__()
        self.language_model = module_from_config(kind, config, SLOTS)
        tables = fuse(self.language_model)
        self.tables = [f"rotary_{index}" for index in range(len(tables))]
        for name, table in zip(self.tables, tables, strict=True):
            self.register_buffer(name, table)

    def forward(
        self,
        input_ids: torch.Tensor,
        inputs_embeds: torch.Tensor,
        position_ids: torch.Tensor,
        logits_at: torch.Tensor,
        total_sequence_length: torch.Tensor,
        past_key_values: list[torch.Tensor],
    ) -> list[torch.Tensor]:
        """Gives `logits` float32 `[wanted, vocab]`, then every slot with its new tokens."""
        slots = Slots(
            past=past_key_values,
            last=position_ids.select(1, -1).to(torch.int32),
            total=total_sequence_length,
            rotary=[self.get_buffer(name) for name in self.tables],
        )
        model = self.language_model
        hidden = model.base_model(
            inputs_embeds=embed(model.get_input_embeddings(), input_ids, inputs_embeds),
            # Of four axes, so that transformers makes none of its own.
            attention_mask=inputs_embeds.new_zeros(1, 1, 1, 1),
            position_ids=position_ids,
            past_key_values=slots,
            use_cache=True,
            slots=slots,
        ).last_hidden_state
        logits = model.lm_head(pick(hidden, logits_at)).squeeze(0)  # [wanted, vocab]
        return [logits.to(torch.float32), *slots.present]


def decoder_only(
    kind: type[PreTrainedModel],
    text_config: Any,
    embedding: str,
    *,
    precision: str,
    fuse: Fuse = fuse_nothing,
) -> tuple[Component, ...]:
    """Returns the graphs of a decoder-only language model.

    Args:
        kind: transformers' class, a causal language model.
        text_config: the checkpoint's.
        embedding: the name of the embeddings' table in the checkpoint, without `.weight`.
        precision: that they compute in.
        fuse: what is replaced in `batched_decoder`.
    """
    shape = CacheShape.from_config(text_config)
    embeds = inputs_embeds_spec(text_config.hidden_size, precision)
    positions = TensorSpec(name="position_ids", dtype="int64", axes=IDS)
    logits = logits_spec(text_config.vocab_size)

    def caches(prefix: str, length: str) -> tuple[TensorSpec, ...]:
        return cache_specs(prefix, shape.layers, shape.heads, length, shape.head_dim, precision)

    decoder = Component(
        component="language_model",
        graph="decoder",
        precision=precision,
        contract=Contract(
            inputs=(
                embeds,
                TensorSpec(name="attention_mask", dtype="int64", axes=("batch", "total")),
                positions,
                *caches("past_key_values", "past"),
            ),
            outputs=(logits, *caches("present_key_values", "total")),
        ),
        kind=Decoder,
        settings=(kind, text_config),
    )
    batched_decoder = Component(
        component="language_model",
        graph="batched_decoder",
        precision=precision,
        contract=Contract(
            inputs=(*slot_specs(hidden=embeds), *caches("past_key_values", "capacity")),
            outputs=(
                slot_logits_spec(text_config.vocab_size),
                *caches("present_key_values", "capacity"),
            ),
        ),
        kind=BatchedDecoder,
        settings=(kind, text_config, fuse),
    )
    return embed_tokens(text_config, embedding, precision=precision), decoder, batched_decoder
