"""The attention that every traced module uses, and the masks that go with it.

transformers' own masks are built for its own back ends. Here every mask is an additive float32
tensor of four axes, made from the contract's integer masks, which transformers hands through.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

NAME = "iblip"
"""Name under which this attention is registered with transformers."""

MASKED = torch.finfo(torch.float32).min
"""Value that masks add to the score of a forbidden position."""


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Computes scaled dot-product attention, with the softmax in float32 for any input dtype.

    Args:
        module: the layer; `num_key_value_groups` says how many query heads share a key head.
        query: `[batch, heads, queries, head_dim]`.
        key, value: `[batch, kv_heads, keys, head_dim]`.
        attention_mask: additive float32, broadcast over `[batch, heads, queries, keys]`.
        scaling: of the scores.
        dropout: not applied: graphs are traced for inference.
        position_bias: T5's relative position bias, `[1, heads, queries, keys]`.
        kwargs: what transformers passes to other implementations; ignored.

    Returns:
        `[batch, queries, heads, head_dim]` in the query's dtype, and no attention weights.
    """
    groups = getattr(module, "num_key_value_groups", 1)
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.transpose(-1, -2))
    if scaling != 1.0:
        scores = scores * scaling
    scores = scores.to(torch.float32)
    for bias in (position_bias, attention_mask):
        if bias is not None:
            scores = scores + bias.to(torch.float32)
    weights = torch.softmax(scores, dim=-1).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


def padding_mask(mask: torch.Tensor) -> torch.Tensor:
    """Converts `[batch, keys]` of 0 and 1 to an additive `[batch, 1, 1, keys]`."""
    return (1.0 - mask[:, None, None, :].to(torch.float32)) * MASKED


def causal_mask(mask: torch.Tensor, queries: int) -> torch.Tensor:
    """Converts `[batch, total]` of 0 and 1 to an additive `[batch, 1, queries, total]`.

    The queries are the last of the `total` positions; each sees itself and all before it.
    """
    total = mask.shape[1]
    keys = torch.arange(total)[None, :]
    rows = (torch.arange(queries) + (total - queries))[:, None]
    allowed = (keys <= rows)[None, None] & (mask[:, None, None, :] != 0)
    return torch.where(allowed, 0.0, MASKED)


def module_from_config(kind: type[PreTrainedModel], config: Any, attention: str = NAME) -> Any:
    """Constructs a module of transformers' `kind` with a registered attention, by default this."""
    make: Any = kind._from_config
    return make(config, attn_implementation=attention)


AttentionInterface.register(NAME, attention)
