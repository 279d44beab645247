"""The language model as a directory of its own: transformers reads it, and it says the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    InstructBlipForConditionalGeneration,
    OPTConfig,
    OPTForCausalLM,
)

from export.checkpoint import Checkpoint, checkpoint_from_directory
from export.errors import CheckpointError, ExportError
from export.hugging_face import write_language_model
from export.progress import Silent
from export.weights import tensors_from_safetensors

OPT = OPTConfig(
    hidden_size=32,
    word_embed_proj_dim=32,
    ffn_dim=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    vocab_size=100,
    max_position_embeddings=64,
)


def opt_checkpoint(directory: Path, *, has_head: bool) -> tuple[Checkpoint, Any]:
    """A BLIP-2 in name only: its language model's weights, under the names they have there."""
    torch.manual_seed(0)
    model = OPTForCausalLM(OPT)
    tensors = {f"language_model.{name}": value for name, value in model.state_dict().items()}
    if has_head:
        head = torch.randn_like(model.lm_head.weight)
        tensors["language_model.lm_head.weight"] = head
        model.lm_head.weight = torch.nn.Parameter(head)
    else:
        tensors.pop("language_model.lm_head.weight", None)
    tensors["query_tokens"] = torch.zeros(2)
    file = directory / "model.safetensors"
    save_file({name: value.clone() for name, value in tensors.items()}, file)
    checkpoint = Checkpoint(
        directory=directory,
        family="blip2",
        config=SimpleNamespace(text_config=OPT),
        tensors=tensors_from_safetensors(file),
    )
    return checkpoint, model


def logits(model: Any, embeds: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(inputs_embeds=embeds.to(model.dtype)).logits
    return found


def test_a_llama_says_what_it_said_within_the_whole(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = checkpoint_from_directory(tiny("vicuna"))
    config, weights = write_language_model(checkpoint, tmp_path / "lm", "float32", Silent())
    assert (config, weights) == (tmp_path / "lm/config.json", tmp_path / "lm/model.safetensors")
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    whole = InstructBlipForConditionalGeneration.from_pretrained(checkpoint.directory)
    assert type(alone).__name__ == "LlamaForCausalLM"
    embeds = torch.randn(1, 5, 32)
    assert torch.equal(logits(alone, embeds), logits(whole.language_model, embeds))


@pytest.mark.parametrize("has_head", [False, True])
def test_an_opt_is_tied_where_the_checkpoint_has_no_head(tmp_path: Path, has_head: bool) -> None:
    checkpoint, model = opt_checkpoint(tmp_path, has_head=has_head)
    write_language_model(checkpoint, tmp_path / "lm", "float32", Silent())
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    assert isinstance(alone, OPTForCausalLM)
    assert alone.config.tie_word_embeddings is not has_head
    embeds = torch.randn(1, 5, 32)
    assert torch.equal(logits(alone, embeds), logits(model, embeds))


def test_weights_are_cast_and_nothing_else_is_copied(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
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


def test_a_weight_that_leaves_the_range_is_told(tmp_path: Path) -> None:
    checkpoint, _ = opt_checkpoint(tmp_path, has_head=False)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["language_model.model.decoder.layers.0.fc1.weight"][0, 0] = 1e6
    save_file(tensors, file)
    with pytest.raises(ExportError, match=r"fc1\.weight: 1 of .* leave the range of float16"):
        write_language_model(checkpoint, tmp_path / "lm", "float16", Silent())


def test_a_checkpoint_without_a_language_model_is_told(tmp_path: Path) -> None:
    checkpoint, _ = opt_checkpoint(tmp_path, has_head=False)
    empty = Checkpoint(directory=tmp_path, family="blip2", config=checkpoint.config, tensors={})
    with pytest.raises(CheckpointError, match=r"no weights that begin with 'language_model\.'"):
        write_language_model(empty, tmp_path / "lm", "float32", Silent())
