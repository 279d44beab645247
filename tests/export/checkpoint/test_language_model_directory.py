"""The language model as a directory of its own: transformers reads it, and it says the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Blip2ForConditionalGeneration,
    InstructBlipForConditionalGeneration,
)

from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.checkpoint.language_model_directory import write_language_model
from iblip.export.errors import CheckpointError, ExportError
from iblip.export.progress import Silent

Tiny = Callable[[str], Path]


def logits(model: Any) -> torch.Tensor:
    torch.manual_seed(0)
    embeds = torch.randn(1, 5, model.config.hidden_size)
    with torch.no_grad():
        found: torch.Tensor = model.eval()(inputs_embeds=embeds).logits
    return found


@pytest.mark.parametrize(
    ("kind", "whole", "architecture", "tied"),
    [
        ("vicuna", InstructBlipForConditionalGeneration, "LlamaForCausalLM", False),
        ("opt", Blip2ForConditionalGeneration, "OPTForCausalLM", True),
        ("other-opt", Blip2ForConditionalGeneration, "OPTForCausalLM", False),
    ],
)
def test_it_says_what_it_said_within_the_whole(
    tiny: Tiny, tmp_path: Path, kind: str, whole: Any, architecture: str, tied: bool
) -> None:
    checkpoint = checkpoint_from_directory(tiny(kind))
    config, weights = write_language_model(checkpoint, tmp_path / "lm", "float32", Silent())
    assert (config, weights) == (tmp_path / "lm/config.json", tmp_path / "lm/model.safetensors")
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    assert type(alone).__name__ == architecture
    assert alone.config.tie_word_embeddings is tied
    assert ("lm_head.weight" in load_file(weights)) is not tied
    model = whole.from_pretrained(checkpoint.directory)
    assert torch.equal(logits(alone), logits(model.language_model))


def test_weights_are_cast_and_nothing_else_is_copied(tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = checkpoint_from_directory(tiny("vicuna"))
    _, weights = write_language_model(checkpoint, tmp_path / "lm", "float16", Silent())
    found, source = load_file(weights), load_file(checkpoint.directory / "model.safetensors")
    prefix = "language_model."
    wanted = {name.removeprefix(prefix) for name in source if name.startswith(prefix)}
    assert found.keys() == wanted
    for name, tensor in found.items():
        assert tensor.dtype == torch.float16
        assert torch.equal(tensor, source[prefix + name].to(torch.float16))
    with safe_open(weights, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_weight_that_leaves_the_range_is_told(tiny_copy: Tiny, tmp_path: Path) -> None:
    directory = tiny_copy("vicuna")
    file = directory / "model.safetensors"
    tensors = load_file(file)
    tensors["language_model.model.layers.0.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(tensors, file)
    checkpoint = checkpoint_from_directory(directory)
    with pytest.raises(ExportError, match=r"up_proj\.weight: 1 of .* leave the range of float16"):
        write_language_model(checkpoint, tmp_path / "lm", "float16", Silent())


def test_a_checkpoint_without_a_language_model_is_told(tiny: Tiny, tmp_path: Path) -> None:
    empty = replace(checkpoint_from_directory(tiny("vicuna")), tensors={})
    with pytest.raises(CheckpointError, match=r"no weights that begin with 'language_model\.'"):
        write_language_model(empty, tmp_path / "lm", "float32", Silent())
