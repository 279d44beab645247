"""Attention over slots: caches that many requests share and that no step copies.

A slot is one row of preallocated buffers `[slots, kv_heads, capacity, head_dim]`. New keys and
values are written into it where the row's own text ends, so rows of any lengths are decoded side by
side. ONNX Runtime's `com.microsoft.GroupQueryAttention` does this in place where its past and its
present are bound to the same memory. It is not an ONNX operator, so the portable `decoder` graph
has none of it: see docs/decisions/0006.

Every `batched_decoder` follows one convention, so that one graph reads prompts and decodes, lies
wholly on a GPU, and can be replayed there as a CUDA graph on memory that stays in place:

- `input_ids`, int64 `[batch, sequence]`: the token at each new position; -1 where it takes its row
  of `inputs_embeds` instead.
- `inputs_embeds`, `[batch, sequence, hidden]`: visual prompts. T5's answers have none, nor does its
  decoder have this input.
- `position_ids`, int64 `[batch, sequence]`: where in its slot each new position is put, one after
  another.
- `logits_at`, int64 `[wanted]`: the new positions whose logits are returned, as indices into
  `[batch * sequence]`.
- `total_sequence_length`, int32 `[1]`: a bound of every row's length. It stays on the host.
- `past_key_values.*`, `[batch, kv_heads, capacity, head_dim]`: the slots.

It returns `logits` float32 `[wanted, vocab]`, and `present_key_values.*`, bound where the past is.

A row's length is on the device: its last position in `position_ids`, plus 1. No result depends on
`total_sequence_length`, which may be anything from the longest row's length to the capacity, so a
captured CUDA graph keeps the capacity. The operator has two exceptions: a bias has that many
columns; and for several new positions in each of several rows, all rows must begin at position 0
and `total_sequence_length` must be `sequence`.

Each row gets `sequence` new positions. A shorter row is padded behind its end: no position sees a
later one, and the next call overwrites what was padded.

An encoder's lengths follow the same rule: int64 `[batch]` `source_lengths` is on the device; int32
`[1]` `total_source_length` stays on the host, and may be anything up to `source_capacity`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.onnx.ops import symbolic_multi_out
from transformers import AttentionInterface

NAME = "iblip_slots"
"""Name under which this attention is registered with transformers."""

_OPERATOR = "com.microsoft::GroupQueryAttention"


def embed(
    table: torch.nn.Module, input_ids: torch.Tensor, inputs_embeds: torch.Tensor
) -> torch.Tensor:
    """Looks tokens up; takes a position's row of `inputs_embeds` where its id is -1.

    Args:
        table: the token embeddings.
        input_ids: int64 `[batch, sequence]`.
        inputs_embeds: `[batch, sequence, hidden]`.

    Returns:
        `[batch, sequence, hidden]`.
    """
    # ONNX's Gather reads -1 as the last row, which is then not taken.
    return torch.where((input_ids < 0)[..., None], inputs_embeds, table(input_ids))


def pick(hidden: torch.Tensor, logits_at: torch.Tensor) -> torch.Tensor:
    """Returns the hidden states `[1, wanted, hidden]` whose logits are wanted.

    With three axes the head is a MatMul like every other matrix; with two it would be a Gemm.

    Args:
        hidden: `[batch, sequence, hidden]`.
        logits_at: int64 `[wanted]`, indices into `[batch * sequence]`.
    """
    return torch.index_select(hidden.flatten(0, 1), 0, logits_at)[None]


@dataclass
class Slots:
    """The caches of every layer during one call of the decoder.

    It takes the place of transformers' cache, and is passed to `attention` as a keyword.

    Attributes:
        past: `[key 0, value 0, key 1, …]`, each `[batch, kv_heads, capacity, head_dim]`.
        last: int32 `[batch]`, the position of each row's last new token.
        total: int32 `[1]`, a bound of every row's length.
        cross: an encoder's, as `past`, `[batch, heads, source_capacity, head_dim]` each.
        cross_last: int32 `[batch]`, each row's last position in `cross`.
        cross_total: int32 `[1]`, a bound of every row's length in `cross`.
        bias: added to the scores of `past`, `[batch, heads, sequence, total]`.
        rotary: cosines and sines of every position, `[positions, head_dim / 2]` each, where queries
            and keys are to be rotated.
        present: `past` with the new positions in it, filled while the decoder runs.
    """

    past: Sequence[torch.Tensor]
    last: torch.Tensor
    total: torch.Tensor
    cross: Sequence[torch.Tensor] = ()
    cross_last: torch.Tensor | None = None
    cross_total: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    rotary: Sequence[torch.Tensor] = ()
    present: list[torch.Tensor] = field(default_factory=list)

    def update(
        self, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the new keys and values alone: `attention` puts them into their slots."""
        return key, value

    def get_seq_length(self, *_: Any) -> int:
        """Returns 0: nothing depends on it, as positions are given."""
        return 0


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    *,
    slots: Slots,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attends to a slot's text and to the new tokens, which it adds to the slot.

    Args:
        module: the layer.
        query: `[batch, heads, sequence, head_dim]`.
        key, value: `[batch, kv_heads, sequence, head_dim]`, of the new tokens.
        attention_mask: ignored: `slots` knows what each row may see.
        scaling: of the scores.
        slots: the caches.
        kwargs: what transformers passes to other implementations; ignored.

    Returns:
        `[batch, sequence, heads, head_dim]`, and no attention weights.
    """
    layer: Any = module
    heads, width = query.shape[1], query.shape[3]
    queries, keys, values = map(_merge_heads, (query, key, value))
    mixed = attend(layer.layer_idx, queries, keys, values, heads, scaling, slots)
    return mixed.reshape(*mixed.shape[:2], heads, width), None


def attend(
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    heads: int,
    scaling: float,
    slots: Slots,
) -> torch.Tensor:
    """Computes one layer's causal attention, and puts the new keys and values into their slots.

    Args:
        layer: its index.
        query: `[batch, sequence, heads * head_dim]`, not yet rotated if `slots` has `rotary`.
        key, value: `[batch, sequence, kv_heads * head_dim]`, likewise.
        heads: of the query.
        scaling: of the scores.
        slots: the caches; the layer's `present` is added to them.

    Returns:
        `[batch, sequence, heads * head_dim]`.
    """
    past = slots.past[2 * layer : 2 * layer + 2]  # each [batch, kv_heads, capacity, head_dim]
    inputs: list[torch.Tensor | None] = [query, key, value, *past, slots.last, slots.total]
    inputs += [table.to(query.dtype) for table in slots.rotary]
    if slots.bias is not None:
        inputs += [None, None, None, slots.bias.to(query.dtype)]
    # mixed: [batch, sequence, heads * head_dim]; present: as past
    mixed, *present = _group_query_attention(
        inputs, heads, scaling, past, do_rotary=int(bool(slots.rotary))
    )
    slots.present += present
    return mixed


def attend_across(
    layer: int, query: torch.Tensor, heads: int, scaling: float, slots: Slots
) -> torch.Tensor:
    """Computes one layer's attention to an encoder's keys and values, which are complete.

    Args:
        layer: its index.
        query: `[batch, sequence, heads * head_dim]`.
        heads: of the query.
        scaling: of the scores.
        slots: the caches.

    Returns:
        `[batch, sequence, heads * head_dim]`.
    """
    cross = slots.cross[2 * layer : 2 * layer + 2]  # each [batch, heads, source_capacity, head_dim]
    nothing = query[:, :0]  # [batch, 0, heads * head_dim]
    inputs = [query, nothing, nothing, *cross, slots.cross_last, slots.cross_total]
    (mixed,) = _group_query_attention(inputs, heads, scaling, cross, causal=0)
    return mixed


def _group_query_attention(
    inputs: Sequence[torch.Tensor | None],
    heads: int,
    scaling: float,
    past: Sequence[torch.Tensor],
    *,
    causal: int = 1,
    do_rotary: int = 0,
) -> Sequence[torch.Tensor]:
    """Calls the operator; if causal, it returns `[mixed, present key, present value]`."""
    query = inputs[0]
    assert query is not None
    shapes = [query.shape, *(tensor.shape for tensor in past if causal)]
    return symbolic_multi_out(
        _OPERATOR,
        inputs,
        {
            "num_heads": heads,
            "kv_num_heads": past[0].shape[1],
            "scale": float(scaling),
            "causal": causal,
            "do_rotary": do_rotary,
        },
        dtypes=[query.dtype] * len(shapes),
        shapes=[list(shape) for shape in shapes],
        version=1,
    )


def _merge_heads(states: torch.Tensor) -> torch.Tensor:
    # [batch, heads, sequence, head_dim] to [batch, sequence, heads * head_dim]
    return states.transpose(1, 2).flatten(2)


AttentionInterface.register(NAME, attention)
