"""T5 (FLAN-T5) and mT5: `embed_tokens`, `encoder`, and one `decoder` graph for every step.

The encoder gives the decoder's cross-attention keys and values at once: they are all that the
decoder needs of it, and they do not change while an answer grows. `batched_decoder` is the same
decoder over slots: see `export.components.slots`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import EncoderDecoderCache, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5LayerNorm

from iblip.export.artifact.contract import Contract, TensorSpec
from iblip.export.components.attention import causal_mask, module_from_config, padding_mask
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
from iblip.export.components.t5_slots import T5BatchedDecoder, raw_logits


class DividedRMSNorm(T5LayerNorm):
    """RMSNorm in standard operators, as ONNX Runtime recognises it and makes one operator of it.

    torch's `rsqrt` becomes two operators, which it does not recognise. In bfloat16 it must not: it
    has no kernel for a float32 stream and a bfloat16 weight.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """As transformers': any float dtype in, the weight's out, the shape unchanged."""
        if self.weight.dtype == torch.bfloat16:
            own: torch.Tensor = super().forward(hidden_states)  # type: ignore[no-untyped-call]
            return own
        wide = hidden_states.to(torch.float32)
        variance = wide.pow(2).mean(-1, keepdim=True)
        normed = wide / torch.sqrt(variance + self.variance_epsilon)
        return self.weight * normed.to(self.weight.dtype)


class _T5(torch.nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.language_model = module_from_config(T5ForConditionalGeneration, config)
        for module in self.language_model.modules():
            if isinstance(module, T5LayerNorm):
                module.__class__ = DividedRMSNorm


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
        return [raw_logits(model, hidden).to(torch.float32), *tensors_from_cache(past)]


def t5(config: Any, *, precision: str) -> tuple[Component, ...]:
    """Returns the graphs of a checkpoint's T5 or mT5; `config` is the whole checkpoint's.

    mT5 is T5 1.1 with another vocabulary: transformers' T5 modules compute it from its config.
    """
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
        kind=T5Encoder,
        settings=(text,),
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
        kind=T5Decoder,
        settings=(text,),
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
        kind=T5BatchedDecoder,
        settings=(text,),
    )
    embed = embed_tokens(text, "language_model.shared", precision=precision)
    return embed, encoder, decoder, batched_decoder
