"""Tiny checkpoints with random weights: right in every shape, and quick to trace."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    LlamaConfig,
    T5Config,
)

from tests.fixtures.sharing import MakeOnce

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 72,
    "patch_size": 24,
}
QFORMER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "encoder_hidden_size": 32,
    "vocab_size": 394,
    "max_position_embeddings": 64,
}
# Two query heads share a key head, as in later LLaMAs.
LLAMA = LlamaConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,  # what GroupQueryAttention turns itself; tests/engines has one that it does not
    vocab_size=712,
    max_position_embeddings=64,
)
T5 = T5Config(
    d_model=32,
    d_ff=64,
    d_kv=8,
    num_layers=2,
    num_heads=4,
    vocab_size=712,
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
)
LANGUAGE_MODELS = {"vicuna": LLAMA, "flant5": T5}


@pytest.fixture(scope="session")
def tiny(
    checkpoints: Path,
    random_checkpoint: Callable[[str], Path],
    make_once: MakeOnce,
) -> Callable[[str], Path]:
    """The tiny checkpoint of a kind, made once: `vicuna`, `flant5`, or a BLIP-2 with a tokenizer of
    its own, `opt`, `other-opt` or `blip2-t5`."""

    def make(kind: str) -> Path:
        if kind not in LANGUAGE_MODELS:
            return random_checkpoint(kind)
        return make_once(
            f"tiny-{kind}", lambda directory: _checkpoint(kind, checkpoints, directory)
        )

    return make


@pytest.fixture
def tiny_copy(tiny: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A tiny checkpoint of the test's own, to damage."""

    def copy(kind: str) -> Path:
        return Path(shutil.copytree(tiny(kind), tmp_path / f"copy-{kind}"))

    return copy


def _checkpoint(kind: str, checkpoints: Path, directory: Path) -> Path:
    demo = checkpoints / f"instructblip-demo-{kind}"
    torch.manual_seed(0)
    config = InstructBlipConfig(
        vision_config=VISION,
        qformer_config=QFORMER,
        text_config=LANGUAGE_MODELS[kind].to_dict(),
        num_query_tokens=8,  # as the demos' processor has it
    )
    config.image_token_index = 711
    model = InstructBlipForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    for path in demo.iterdir():
        if path.name not in {"config.json", "model.safetensors", "examples"}:
            copy: Any = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, directory / path.name)
    if kind == "flant5":
        _untie(directory)
    return directory


def _untie(directory: Path) -> None:
    """FLAN-T5's output embeddings are its own; transformers would save them as tied."""
    tensors = load_file(directory / "model.safetensors")
    shared = tensors["language_model.shared.weight"]
    tensors["language_model.lm_head.weight"] = torch.randn_like(shared)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = False
    (directory / "config.json").write_text(json.dumps(config))
