"""T5's decoder over slots, in as few operators as ONNX Runtime has for it.

Traced as in transformers, a layer is some fifty small operators: RMSNorm's nine, a clamp of twelve,
relative positions that are computed anew. Here each block runs on transformers' own weights:

- RMSNorm is one operator, and the relative position bias is looked up by distance.
- Nothing is clamped. transformers clamps a float16 stream after each sublayer; its own is float32
  from the first feed-forward on, whose `wo` it keeps in float32 because the stream leaves the range
  of float16. In float16 the stream here is scaled by `FLOAT16_SCALE`, which is exact, as RMSNorm
  does not depend on its input's scale. So it can be float16 throughout, and `wo` too.
- In bfloat16, which has float32's range, transformers has `wo` and the stream in bfloat16 as well.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import T5ForConditionalGeneration
from transformers.activations import NewGELUActivation
from transformers.models.t5.modeling_t5 import (
    T5Attention,
    T5Block,
    T5DenseActDense,
    T5DenseGatedActDense,
    T5LayerNorm,
)

from iblip.export.components.attention import module_from_config
from iblip.export.components.rms_norm import rms_norm
from iblip.export.components.slots import Slots, attend, attend_across, pick

FLOAT16_SCALE = 2.0**-8
"""Factor of a float16 stream: its elements may be as large as 1.6e7, and those below 0.016 are
rounded to multiples of 1.5e-5. A power of 2, so that nothing else is rounded."""


class SlotNorm(T5LayerNorm):
    """RMSNorm of a stream that is scaled by `scale_of` its dtype."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[…, hidden]`, the scaled stream, to the same shape, not scaled."""
        scale = scale_of(hidden.dtype)
        return rms_norm(hidden, self.weight, self.variance_epsilon * scale**2)


class SlotSelfAttention(T5Attention):
    """Causal attention, whose operator puts new keys and values into their slots."""

    layer_idx: int

    def forward(  # type: ignore[override]
        self, normed: torch.Tensor, slots: Slots
    ) -> torch.Tensor:
        """`[batch, sequence, hidden]` in and out."""
        projected = self.q(normed), self.k(normed), self.v(normed)
        mixed: torch.Tensor = self.o(
            attend(self.layer_idx, *projected, self.n_heads, self.scaling, slots)
        )
        return mixed


class SlotCrossAttention(T5Attention):
    """Attention to the keys and values that the encoder gave."""

    layer_idx: int

    def forward(  # type: ignore[override]
        self, normed: torch.Tensor, slots: Slots
    ) -> torch.Tensor:
        """`[batch, sequence, hidden]` in and out."""
        query = self.q(normed)
        mixed: torch.Tensor = self.o(
            attend_across(self.layer_idx, query, self.n_heads, self.scaling, slots)
        )
        return mixed


def feed_forward(dense: T5DenseActDense | T5DenseGatedActDense, normed: torch.Tensor) -> Any:
    """`[batch, sequence, hidden]` in and out, in the input's dtype whatever `wo` is stored in."""
    if isinstance(dense, T5DenseGatedActDense):
        inner = dense.act(dense.wi_0(normed)) * dense.wi_1(normed)
    else:
        inner = dense.act(dense.wi(normed))
    weight = dense.wo.weight
    return torch.nn.functional.linear(inner, weight.to(inner.dtype))


class SlotBlock(T5Block):  # type: ignore[no-untyped-call]
    """A block of the decoder over slots."""

    def forward(  # type: ignore[override]
        self, hidden: torch.Tensor, slots: Slots
    ) -> torch.Tensor:
        """`[batch, sequence, hidden]`, the scaled stream, in and out."""
        scale, layers = scale_of(hidden.dtype), cast(Any, self.layer)
        attention, across, feed = layers

        def add(result: torch.Tensor) -> torch.Tensor:
            return hidden + (result if scale == 1.0 else result * scale)

        hidden = add(attention.SelfAttention(attention.layer_norm(hidden), slots))
        hidden = add(across.EncDecAttention(across.layer_norm(hidden), slots))
        return add(feed_forward(feed.DenseReluDense, feed.layer_norm(hidden)))


class T5BatchedDecoder(torch.nn.Module):
    """Tokens and slots to logits and the same slots.

    Args:
        config: the checkpoint's text config.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.language_model = module_from_config(T5ForConditionalGeneration, config)
        decoder = self.language_model.decoder
        for module in list(decoder.modules()):
            _fuse(module)
        first = decoder.block[0].layer[0].SelfAttention
        distances = torch.arange(first.relative_attention_max_distance + 1)
        buckets = first._relative_position_bucket(
            -distances,
            bidirectional=False,
            num_buckets=first.relative_attention_num_buckets,
            max_distance=first.relative_attention_max_distance,
        )
        self.register_buffer("buckets", buckets)  # [max_distance + 1]

    @property
    def stream_scale(self) -> float:
        """What the results of blocks are scaled by."""
        return scale_of(self.language_model.shared.weight.dtype)

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
        hidden = model.shared(input_ids)  # [batch, sequence, hidden]
        if self.stream_scale != 1.0:
            hidden = hidden * self.stream_scale
        for block in model.decoder.block:
            hidden = block(hidden, slots)
        hidden = model.decoder.final_layer_norm(pick(hidden, logits_at))  # [1, wanted, hidden]
        return [raw_logits(model, hidden).squeeze(0).to(torch.float32), *slots.present]

    def _bias(self, position_ids: torch.Tensor, key_positions: torch.Tensor) -> torch.Tensor:
        """T5's relative position bias, which differs from row to row with its position.

        A key behind the query's own position, which it must not see, gets the lowest value.
        Source: Raffel et al. 2020, T5, section 2.1; transformers' T5Attention.compute_bias.
        """
        first, buckets = self.language_model.decoder.block[0].layer[0], self.get_buffer("buckets")
        seen = first.SelfAttention.relative_attention_bias(buckets)  # [max_distance + 1, heads]
        unseen = seen.new_full((1, seen.shape[1]), torch.finfo(seen.dtype).min)
        table = torch.cat([unseen, seen])  # by distance + 1; all from max_distance on are alike
        distances = position_ids.unsqueeze(-1) - key_positions  # [batch, sequence, total]
        rows = (distances + 1).clamp(0, len(buckets))
        # [batch, sequence, total, heads] to [batch, heads, sequence, total]
        return torch.nn.functional.embedding(rows, table).permute(0, 3, 1, 2)


def scale_of(dtype: torch.dtype) -> float:
    """Returns the factor of the decoder's residual stream in this dtype."""
    return FLOAT16_SCALE if dtype == torch.float16 else 1.0


def raw_logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Returns `[…, vocab]`, not yet float32, of the decoder's normalised result `[…, hidden]`."""
    if getattr(model.config, "scale_decoder_outputs", False):  # mT5's config has no such field
        hidden = hidden * (model.model_dim**-0.5)
    logits: torch.Tensor = model.lm_head(hidden)
    return logits


def _fuse(module: torch.nn.Module) -> None:
    """Replaces the class of a module of the decoder."""
    if isinstance(module, T5Attention):
        module.__class__ = SlotSelfAttention if module.is_causal else SlotCrossAttention
    elif isinstance(module, T5Block):
        module.__class__ = SlotBlock
    elif isinstance(module, T5LayerNorm):
        module.__class__ = SlotNorm
    elif isinstance(getattr(module, "act", None), NewGELUActivation):  # the same formula
        module.act = torch.nn.GELU(approximate="tanh")
