"""GPT-NeoX. It rotates a part of each head, which the operator of `slots` leaves to others."""

from __future__ import annotations

from typing import Any

from transformers import GPTNeoXForCausalLM
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding

from iblip.export.components.component import Component
from iblip.export.components.decoder_only import decoder_only
from iblip.export.components.rope import with_fixed_angles


def gpt_neox(config: Any, *, precision: str) -> tuple[Component, ...]:
    """Returns the graphs of a checkpoint's GPT-NeoX; `config` is the whole checkpoint's.

    Raises:
        CheckpointError: its rotary embedding cannot be used.
    """
    text_config = with_fixed_angles(config.text_config, GPTNeoXRotaryEmbedding)
    embedding = "language_model.gpt_neox.embed_in"
    return decoder_only(GPTNeoXForCausalLM, text_config, embedding, precision=precision)
