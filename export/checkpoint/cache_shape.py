"""The shape of a language model's key-value cache, and its longest sequence, from its config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

DEFAULT_T5_LENGTH = 512
"""The length that T5 and FLAN-T5 were trained with, for a config that has none."""


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """The sizes of a sequence's keys and values.

    Attributes:
        layers: number of decoder layers.
        heads: number of key-value heads; fewer than query heads if these share them.
        head_dim: elements of a head.
        positions: the largest number of positions that a sequence may have. A sliding window ends
            it: up to there, each token sees all before it, with the window as without.
    """

    layers: int
    heads: int
    head_dim: int
    positions: int

    @classmethod
    def from_config(cls, text_config: Any) -> Self:
        """Reads the decoder's sizes, under the names that transformers' language models give them.

        OPT names neither `num_key_value_heads` nor `head_dim`; T5's `num_hidden_layers` counts its
        encoder.
        """
        text, heads = text_config, text_config.num_attention_heads
        return cls(
            layers=getattr(text, "num_decoder_layers", None) or text.num_hidden_layers,
            heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
            positions=_positions(text),
        )


def _positions(text: Any) -> int:
    """Returns the largest number of positions; T5's config has none, or its length in training."""
    length = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    window = getattr(text, "sliding_window", None)
    if "sliding_attention" not in (getattr(text, "layer_types", None) or ["sliding_attention"]):
        window = None  # of none of the layers
    length = int(length or DEFAULT_T5_LENGTH)
    return length if window is None else min(length, int(window))
