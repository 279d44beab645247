"""Adapts the vocabulary to tokens that only an original's tokenizer has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iblip.export.weights.weight import Concatenated, Weight, Zeros

TABLES = (
    "language_model.model.embed_tokens.weight",
    "language_model.model.decoder.embed_tokens.weight",
    "language_model.shared.weight",
    "language_model.encoder.embed_tokens.weight",
    "language_model.decoder.embed_tokens.weight",
    "language_model.lm_head.weight",
)
"""Tensors with a row for each token: embeddings and output layers of any language model."""


def extend_vocabulary(tensors: Mapping[str, Weight], tokens: int) -> dict[str, Weight]:
    """Returns the tensors with rows for at least `tokens` tokens.

    LAVIS gives its Vicuna a row for `[PAD]`, and transformers' processor needs one for `<image>`.
    No such token is ever computed with: LAVIS's row is random, these are 0.
    """
    result = dict(tensors)
    for name in TABLES:
        table = tensors.get(name)
        if table is not None and table.shape[0] < tokens:
            rows, width = table.shape
            more = Zeros(name=f"{name} (added)", dtype=table.dtype, shape=(tokens - rows, width))
            result[name] = Concatenated(name=name, parts=(table, more))
    return result


def set_vocabulary(config: Any, tensors: Mapping[str, Weight], processor: Any) -> None:
    """Sets the vocabulary size in `config`, and the token that stands for the image."""
    rows = [tensors[name].shape[0] for name in TABLES if name in tensors]
    if rows:
        config.text_config.vocab_size = rows[0]
    token = getattr(processor, "image_token", None)
    if token is not None:
        config.image_token_index = processor.tokenizer.convert_tokens_to_ids(str(token))
