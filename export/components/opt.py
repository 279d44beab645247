"""OPT: learned positions, which transformers' own module looks up by `position_ids`."""

from __future__ import annotations

from typing import Any

from transformers import OPTForCausalLM

from iblip.export.components.component import Component
from iblip.export.components.decoder_only import decoder_only
from iblip.export.errors import CheckpointError


def opt(config: Any, *, precision: str) -> tuple[Component, ...]:
    """Returns the graphs of a checkpoint's OPT; `config` is the whole checkpoint's.

    Raises:
        CheckpointError: its embeddings are of another width than its layers.
    """
    text = config.text_config
    if text.word_embed_proj_dim != text.hidden_size:
        raise CheckpointError(
            f"this OPT has word_embed_proj_dim {text.word_embed_proj_dim} and hidden_size"
            f" {text.hidden_size}; supported: the two equal, as in every released OPT but opt-350m."
            " A visual prompt is as wide as hidden_size; narrower embeddings do not fit beside it."
        )
    embedding = "language_model.model.decoder.embed_tokens"
    return decoder_only(OPTForCausalLM, text, embedding, precision=precision)
