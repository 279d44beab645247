"""Rows of the table with few and narrow layers, and whole vocabularies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from iblip.export.models.model import Model
from iblip.export.models.table import MODELS

NARROW = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {
    "llama": {**NARROW, "intermediate_size": 48, "num_key_value_heads": 4},
    "opt": {**NARROW, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "t5": {
        "d_model": 32,
        "d_ff": 48,
        "d_kv": 8,
        "num_heads": 4,
        "num_layers": 2,
        "num_decoder_layers": 2,
    },
}


def shrunken(name: str) -> Model:
    model = MODELS[name]
    part = {**NARROW, "intermediate_size": 48}
    return replace(
        model,
        vision={**model.vision, **part},
        qformer=model.qformer and {**model.qformer, **part, "encoder_hidden_size": 32},
        text={**model.text, **TEXT[model.text["model_type"]]},
    )


@pytest.fixture
def small() -> Callable[[str], Model]:
    """`small("blip2-opt-2.7b")`: that row, shrunken."""
    return shrunken
