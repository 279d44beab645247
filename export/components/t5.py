"""T5 (FLAN-T5): `embed_tokens`, `encoder`, and one `decoder` graph for every step.

The encoder gives the decoder's cross-attention keys and values at once: they are all that the
decoder needs of it, and they do not change while an answer grows. `batched_decoder` is the same
decoder over slots: see `export.components.slots`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache, T5ForConditionalGeneration

from iblip.export.artifact.contract import Contract, TensorSpec
from iblip.export.components.attention import NAME, causal_mask, module_from_config, padding_mask
from iblip.export.components.block_marks import mark
from iblip.export.components.component import Component
from iblip.export.components.language_model import (
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
from iblip.export.components.slots import Slots, pick


class _T5(torch.nn.Module):
    attention = NAME

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.language_model = module_from_config(T5ForConditionalGeneration, config, self.attention)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        # [batch, sequence, hidden] to float32 [batch, sequence, vocab]
        model = self.language_model
        if model.config.scale_decoder_outputs:
            hidden = hidden * (model.model_dim**-0.5)
        logits: torch.Tensor = model.lm_head(hidden)
        return logits.to(torch.float32)


class T5Encoder(_T5):
    """Embeddings to the decoder's cross-attention keys and values.

    Args:
        config: the checkpoint's text config.
    """

    def forward(
        self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor
    ) -> list[torch.Tensor]:
        """Gives `[key 0, value 0, key 1, …]`, each `[batch, heads, sequence, head_dim]`.

        Args:
            inputs_embeds: `[batch, sequence, hidden]`: visual prompt and text.
            attention_mask: int64 `[batch, sequence]`, 1 where a token is.
        """
        model = self.language_model
        hidden = model.encoder(
            inputs_embeds=inputs_embeds, attention_mask=padding_mask(attention_mask)
        ).last_hidden_state
        head_dim = model.config.d_kv
        tensors = []
        for index, block in enumerate(model.decoder.block):
            layer = block.layer[1].EncDecAttention
            for projection in (layer.k, layer.v):
                states = projection(hidden)  # [batch, sequence, heads * head_dim]
                heads = states.unflatten(-1, (-1, head_dim)).transpose(1, 2)
                tensors.append(heads.contiguous())
            path = f"language_model.decoder.block.{index}"
            tensors[-1] = mark(path, tensors[-1], named=False)
        return tensors


class T5Decoder(_T5):
    """Embeddings, past and cross keys and values to logits and present keys and values.

    Args:
        config: the checkpoint's text config.
    """

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        encoder_attention_mask: torch.Tensor,
        key_values: list[torch.Tensor],
    ) -> list[torch.Tensor]:
        """Gives `logits` float32 `[batch, sequence, vocab]`, then every present key and value.

        Args:
            inputs_embeds: `[batch, sequence, hidden]`, of the answer so far.
            attention_mask: int64 `[batch, total]`, total = past + sequence; 1 where a token is.
            encoder_attention_mask: int64 `[batch, source]`, as the encoder had it.
            key_values: the past of every layer, `[batch, heads, past, head_dim]` each, past may be
                0; then the encoder's, `[batch, heads, source, head_dim]` each.
        """
        model = self.language_model
        half = len(key_values) // 2
        past, cross = cache_from_tensors(key_values[:half]), cache_from_tensors(key_values[half:])
        cache = EncoderDecoderCache(past, cross)
        cache.is_updated = dict.fromkeys(range(len(cross.layers)), True)
        hidden = model.decoder(
            inputs_embeds=inputs_embeds,
            attention_mask=causal_mask(attention_mask, inputs_embeds.shape[1]),
            # Only asked whether it is there: the cross-attention reads its cache.
            encoder_hidden_states=inputs_embeds,
            encoder_attention_mask=padding_mask(encoder_attention_mask),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return [self._logits(hidden), *tensors_from_cache(past)]


class T5BatchedDecoder(_T5):
    """Tokens and slots to logits and the same slots.

    Args:
        config: the checkpoint's text config.
    """

    attention = SLOTS

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        logits_at: torch.Tensor,
        total_sequence_length: torch.Tensor,
        key_positions: torch.Tensor,
        source_lengths: torch.Tensor,
        total_source_length: torch.Tensor,
        key_values: list[torch.Tensor],
    ) -> list[torch.Tensor]:
        """Gives `logits` float32 `[wanted, vocab]`, then every slot with its new tokens.

        Args:
            input_ids, position_ids, logits_at, total_sequence_length: see
                `export.components.slots`.
            key_positions: int64 `[total]`, 0 to `total_sequence_length` - 1.
            source_lengths: int64 `[batch]`, how much of its cross keys and values each row has.
            total_source_length: int32 `[1]`, on the host, at least the largest `source_lengths`.
            key_values: the slots of every layer, `[batch, heads, capacity, head_dim]` each; then
                the encoder's, `[batch, heads, source_capacity, head_dim]` each.
        """
        model = self.language_model
        half = len(key_values) // 2
        slots = Slots(
            past=key_values[:half],
            last=position_ids.select(1, -1).to(torch.int32),
            total=total_sequence_length,
            cross=key_values[half:],
            cross_last=(source_lengths - 1).to(torch.int32),
            cross_total=total_source_length,
            bias=self._bias(position_ids, key_positions),
        )
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        cache.self_attention_cache = cache.cross_attention_cache = slots  # type: ignore[assignment]
        cache.is_updated = dict.fromkeys(range(half // 2), True)
        # Of four axes, so that transformers makes none of its own.
        embeds = model.shared(input_ids)  # [batch, sequence, hidden]
        no_mask = embeds.new_zeros(1, 1, 1, 1)
        hidden = model.decoder(
            inputs_embeds=embeds,
            attention_mask=no_mask,
            encoder_hidden_states=embeds,
            encoder_attention_mask=no_mask,
            past_key_values=cache,
            use_cache=True,
            slots=slots,
        ).last_hidden_state
        return [self._logits(pick(hidden, logits_at)).squeeze(0), *slots.present]

    def _bias(self, position_ids: torch.Tensor, key_positions: torch.Tensor) -> torch.Tensor:
        """T5's relative position bias, which differs from row to row with its position.

        Source: Raffel et al. 2020, T5, section 2.1; transformers' T5Attention.compute_bias.
        """
        first = self.language_model.decoder.block[0].layer[0].SelfAttention
        relative = key_positions[None, None, :] - position_ids[:, :, None]
        buckets = first._relative_position_bucket(
            relative,
            bidirectional=False,
            num_buckets=first.relative_attention_num_buckets,
            max_distance=first.relative_attention_max_distance,
        )
        # [batch, sequence, total, heads] to [batch, heads, sequence, total]
        bias: torch.Tensor = first.relative_attention_bias(buckets).permute(0, 3, 1, 2)
        return bias


def t5(config: Any, *, precision: str) -> tuple[Component, ...]:
    """Returns the graphs of a checkpoint's T5; `config` is the whole checkpoint's."""
    text = config.text_config
    layers, heads, head_dim = text.num_decoder_layers, text.num_heads, text.d_kv
    embeds = inputs_embeds_spec(text.d_model, precision)

    def caches(prefix: str, length: str) -> tuple[TensorSpec, ...]:
        return cache_specs(prefix, layers, heads, length, head_dim, precision)

    mask = TensorSpec(name="attention_mask", dtype="int64", axes=("batch", "sequence"))
    encoder = Component(
        component="language_model",
        graph="encoder",
        precision=precision,
        contract=Contract(inputs=(embeds, mask), outputs=caches("cross_key_values", "sequence")),
        module=lambda: T5Encoder(text),
    )
    inputs = (
        embeds,
        TensorSpec(name="attention_mask", dtype="int64", axes=("batch", "total")),
        TensorSpec(name="encoder_attention_mask", dtype="int64", axes=("batch", "source")),
        *caches("past_key_values", "past"),
        *caches("cross_key_values", "source"),
    )
    outputs = (logits_spec(text.vocab_size), *caches("present_key_values", "total"))
    decoder = Component(
        component="language_model",
        graph="decoder",
        precision=precision,
        contract=Contract(inputs=inputs, outputs=outputs),
        module=lambda: T5Decoder(text),
    )
    batched_decoder = Component(
        component="language_model",
        graph="batched_decoder",
        precision=precision,
        contract=Contract(
            inputs=(
                *slot_specs(),
                TensorSpec(name="key_positions", dtype="int64", axes=("total",)),
                TensorSpec(name="source_lengths", dtype="int64", axes=("batch",)),
                TensorSpec(name="total_source_length", dtype="int32", axes=(1,)),
                *caches("past_key_values", "capacity"),
                *caches("cross_key_values", "source_capacity"),
            ),
            outputs=(
                slot_logits_spec(text.vocab_size),
                *caches("present_key_values", "capacity"),
            ),
        ),
        module=lambda: T5BatchedDecoder(text),
    )
    embed = embed_tokens(text, "language_model.shared", precision=precision)
    return embed, encoder, decoder, batched_decoder
