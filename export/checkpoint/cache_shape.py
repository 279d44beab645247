"""The shape of a language model's key-value cache, read from its config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """The sizes of a sequence's keys and values.

    Attributes:
        layers: number of decoder layers.
        heads: number of key-value heads; fewer than query heads if these share them.
        head_dim: elements of a head.
    """

    layers: int
    heads: int
    head_dim: int

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
        )
