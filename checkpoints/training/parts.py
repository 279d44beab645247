"""Models to train: fresh ones, and the parts that are taken from a demo trained before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Blip2ForConditionalGeneration,
    InstructBlipForConditionalGeneration,
    LlamaConfig,
    OPTConfig,
    T5Config,
)

from .architecture import Vocabulary, blip2_config, instructblip_config
from .minigpt4 import new_minigpt4
from .prompts import Form

Text = LlamaConfig | OPTConfig | T5Config


def new_model(family: str, words: Vocabulary, text: Text, form: Form) -> Any:
    """A fresh model.

    Its queries start at random: left at zero they would all stay alike. T5's output layer gets
    weights of its own, as FLAN-T5's has, where transformers would share the embedding's.

    Args:
        family: `instructblip`, `blip2`, `minigpt4` or `minigpt4-merge`.
        words: special ids.
        text: the language model's shape.
        form: how MiniGPT-4 is asked.
    """
    if family.startswith("minigpt4"):
        assert isinstance(text, LlamaConfig)
        return new_minigpt4(text, form, qformer=family == "minigpt4")
    model: Any
    if family == "blip2":
        assert not isinstance(text, LlamaConfig)
        model = Blip2ForConditionalGeneration(blip2_config(words, text))
    else:
        assert not isinstance(text, OPTConfig)
        model = InstructBlipForConditionalGeneration(instructblip_config(words, text))
    torch.nn.init.normal_(model.query_tokens, std=1.0)
    if not model.config.use_decoder_only_language_model:
        output = model.language_model.lm_head
        width = output.weight.shape[1]
        output.weight = torch.nn.Parameter(torch.randn_like(output.weight) * width**-0.5)
    return model


def take_parts(model: Any, sources: Mapping[str, Path]) -> None:
    """Give parts of a model the weights of trained checkpoints.

    Args:
        model: gets them, in place.
        sources: a checkpoint directory a part, of `vision_model`, `qformer` and `language_model`.
            An instruction-aware Q-Former gives all but its text branch, and its queries.
    """
    for part, directory in sources.items():
        whole: Any = InstructBlipForConditionalGeneration.from_pretrained(
            directory, dtype=torch.float32
        )
        given: dict[str, Tensor] = getattr(whole, part).state_dict()
        if part == "qformer":
            given = _without_text(given, getattr(model, part).state_dict())
            model.query_tokens.data.copy_(whole.query_tokens)
        getattr(model, part).load_state_dict(given)


def _without_text(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of an InstructBLIP Q-Former, what BLIP-2's has too, by its names."""
    renamed = {name.removeprefix("embeddings."): tensor for name, tensor in given.items()}
    return {name: renamed[name] for name in wanted}
