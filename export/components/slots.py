"""Attention over slots: caches that many requests share and that no step copies.

A slot is one row of preallocated buffers `[slots, kv_heads, capacity, head_dim]`. New keys and
values are written into it where the row's own text ends, so rows of any lengths are decoded side by
side. ONNX Runtime's `com.microsoft.GroupQueryAttention` does this in place where its past and its
present are bound to the same memory. It is not an ONNX operator, so the portable `decoder` graph
has none of it: see docs/decisions/0006.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.onnx.ops import symbolic_multi_out
from transformers import AttentionInterface
from transformers.cache_utils import DynamicLayer

NAME = "iblip_slots"
"""What transformers knows this attention by."""

_OPERATOR = "com.microsoft::GroupQueryAttention"


@dataclass
class Slots:
    """The caches of every layer, for as long as one call of the decoder takes.

    It stands where transformers wants a cache, and reaches `attention` as a keyword.

    Attributes:
        past: `[key 0, value 0, key 1, …]`, each `[batch, kv_heads, capacity, head_dim]`.
        last: int32 `[batch]`, the position of each row's last new token.
        cross: an encoder's, as `past`, `[batch, heads, source_capacity, head_dim]` each.
        cross_last: int32 `[batch]`, each row's last position in `cross`.
        bias: added to the scores of `past`, `[batch, heads, sequence, total]`.
        rotary: cosines and sines of every position, `[positions, head_dim / 2]` each, where queries
            and keys are to be turned.
        present: `past` with the new positions in it, filled while the decoder runs.
    """

    past: Sequence[torch.Tensor]
    last: torch.Tensor
    cross: Sequence[torch.Tensor] = ()
    cross_last: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    rotary: Sequence[torch.Tensor] = ()
    present: list[torch.Tensor] = field(default_factory=list)

    def update(
        self, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The new keys and values alone: `attention` puts them into their slots."""
        return key, value

    def get_seq_length(self, *_: Any) -> int:
        """Nothing here depends on it: positions are given."""
        return 0

    @property
    def layers(self) -> list[DynamicLayer]:
        """The encoder's, as transformers' cross-attention reads them."""
        layers = []
        for key, value in zip(self.cross[::2], self.cross[1::2], strict=True):
            layer = DynamicLayer()  # type: ignore[no-untyped-call]
            layer.keys, layer.values = key, value
            layers.append(layer)
        return layers


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
    """Attends to a slot's text, and to the new tokens, which it adds to the slot.

    Args:
        module: the layer; `is_causal` tells attention to the text from that to an encoder's.
        query: `[batch, heads, sequence, head_dim]`. More than one token a row only where batch is
            1: the operator takes no more.
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
    flat = _flat(query)
    if layer.is_causal:
        mixed = attend(layer.layer_idx, flat, _flat(key), _flat(value), heads, scaling, slots)
    else:
        mixed = _attend_across(flat, [key, value], heads, scaling, slots)
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
    """Causal attention of one layer, which puts the new keys and values into their slots.

    Args:
        layer: its index.
        query: `[batch, sequence, heads * head_dim]`, not yet turned where `slots` has `rotary`.
        key, value: `[batch, sequence, kv_heads * head_dim]`, likewise.
        heads: of the query.
        scaling: of the scores.
        slots: the caches; get the layer's `present`.

    Returns:
        As `query`.
    """
    past = slots.past[2 * layer : 2 * layer + 2]
    inputs: list[torch.Tensor | None] = [query, key, value, *past, *_lengths(slots.last)]
    inputs += [table.to(query.dtype) for table in slots.rotary]
    if slots.bias is not None:
        inputs += [None, None, None, slots.bias.to(query.dtype)]
    mixed, *present = _grouped(inputs, heads, scaling, past, do_rotary=int(bool(slots.rotary)))
    slots.present += present
    return mixed


def _attend_across(
    query: torch.Tensor,
    cross: Sequence[torch.Tensor],
    heads: int,
    scaling: float,
    slots: Slots,
) -> torch.Tensor:
    """Attention to an encoder's keys and values, which are all there."""
    nothing = query[:, :0]
    inputs = [query, nothing, nothing, *cross, *_lengths(slots.cross_last)]
    (mixed,) = _grouped(inputs, heads, scaling, cross, causal=0)
    return mixed


def _grouped(
    inputs: Sequence[torch.Tensor | None],
    heads: int,
    scaling: float,
    past: Sequence[torch.Tensor],
    *,
    causal: int = 1,
    do_rotary: int = 0,
) -> Sequence[torch.Tensor]:
    """The operator; with causal attention its results are `[mixed, present key, present value]`."""
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


def _flat(states: torch.Tensor) -> torch.Tensor:
    # [batch, heads, sequence, head_dim] to [batch, sequence, heads * head_dim]
    return states.transpose(1, 2).flatten(2)


def _lengths(last: torch.Tensor | None) -> list[torch.Tensor]:
    """What the operator wants to know: every row's last position, and the longest's length."""
    assert last is not None
    return [last, last.max() + 1]


AttentionInterface.register(NAME, attention)
