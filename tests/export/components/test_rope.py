"""Every kind of rotary embedding is exported as transformers computes it, or refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.components.graphs_of_checkpoint import components_from_checkpoint
from iblip.export.components.llama import llama
from iblip.export.components.rope import with_fixed_angles
from iblip.export.errors import CheckpointError
from iblip.export.graph.tracing import trace
from iblip.export.precision import PrecisionPolicy

LENGTH = 64
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "rope_type": "longrope",
    "factor": 2.0,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 32,
}
BUILT: tuple[dict[str, Any] | None, ...] = (
    None,
    {"rope_type": "dynamic", "factor": 2.0},
    {"type": "dynamic", "factor": 4.0},  # as older versions wrote it
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "yarn", "factor": 2.0},
    {"rope_type": "proportional"},
    LLAMA3,
)


def config_with(scaling: dict[str, Any] | None) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        head_dim=16,
        vocab_size=50,
        max_position_embeddings=LENGTH,
        rope_scaling=scaling,
    )


class Whole:
    """Of a checkpoint's config, the part that a language model's graphs are made from."""

    def __init__(self, text_config: LlamaConfig) -> None:
        self.text_config = text_config


@pytest.mark.parametrize("scaling", BUILT, ids=str)
@torch.no_grad()
def test_its_logits_are_those_of_the_config_as_it_was(scaling: dict[str, Any] | None) -> None:
    config = config_with(scaling)
    torch.manual_seed(0)
    original = LlamaForCausalLM(config).eval()
    fixed = LlamaForCausalLM(with_fixed_angles(config)).eval()
    fixed.load_state_dict(original.state_dict())
    for length in (5, LENGTH):  # the longest that a build takes
        ids = torch.randint(0, 50, (1, length))
        assert torch.equal(fixed(ids).logits, original(ids).logits)


@pytest.mark.parametrize("scaling", [{"rope_type": "dynamic", "factor": 2.0}, LLAMA3], ids=str)
def test_its_graphs_are_traced(scaling: dict[str, Any]) -> None:
    components = llama(Whole(config_with(scaling)), precision="fp32")
    for component in components[1:]:  # not the embeddings
        assert trace(component).model.graph.num_nodes() > 10


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        (LONGROPE, "has rope_type 'longrope'; supported: default, linear, .* dynamic"),
        ({"rope_type": "su"}, "has rope_type 'su'; supported"),
        ({"rope_type": 5}, "has rope_type 5; supported"),
        (
            {"rope_type": "linear"},
            r"config\.json is not usable: .*'rope_type'='linear': {'factor'}",
        ),
        (
            {"rope_type": "linear", "factor": "x"},
            r"rope_scaling\) .*'linear'.*cannot use \(TypeErr",
        ),
        ({"rope_type": "linear", "factor": 0}, "its frequencies are not finite"),
    ],
    ids=str,
)
def test_another_is_refused_before_anything_is_traced(
    tiny_copy: Any, scaling: dict[str, Any], message: str
) -> None:
    directory = tiny_copy("vicuna")
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["text_config"].pop("rope_parameters", None)
    config["text_config"]["rope_scaling"] = scaling
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        components_from_checkpoint(checkpoint_from_directory(directory), PrecisionPolicy())
