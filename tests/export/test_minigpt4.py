"""MiniGPT-4's Hugging Face form, which is this project's own: what it says, and what it may not."""

import json

import pytest
from safetensors.torch import load_file, save_file

from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.checkpoint.facts import language_model_facts
from iblip.export.errors import CheckpointError
from iblip.export.exporter import graphs_from_checkpoint
from iblip.export.families.minigpt4 import VICUNA_STOP, VICUNA_TEMPLATE
from iblip.export.precision import PrecisionPolicy
from iblip.export.progress import Silent


def edit(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("kind", "projector"), [("minigpt4", "qformer"), ("minigpt4-merge", "patch_merge")]
)
def test_the_config_says_which_projector_it_is(tiny, kind, projector):
    checkpoint = checkpoint_from_directory(tiny(kind))
    assert (checkpoint.family.name, checkpoint.projector) == ("minigpt4", projector)
    facts = language_model_facts(checkpoint)
    assert (facts.num_query_tokens, facts.eos_token_ids) == (4, (2,))
    assert facts.image_token_id is None  # no token of LLaMA's stands for an image


def test_prompt_and_stop_are_the_originals_where_the_config_is_silent(tiny_copy):
    directory = tiny_copy("minigpt4")
    data = json.loads((directory / "config.json").read_text())
    del data["prompt_template"], data["stop"]
    (directory / "config.json").write_text(json.dumps(data))
    config = checkpoint_from_directory(directory).config
    assert (config.prompt_template, config.stop) == (VICUNA_TEMPLATE, VICUNA_STOP)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("minigpt4", {"merged_patches": 4}, "either a qformer_config or merged_patches"),
        ("minigpt4-merge", {"merged_patches": None}, "qformer_config null and merged_patches None"),
        ("minigpt4-merge", {"merged_patches": 3}, "has 16 patches, and merged_patches is 3"),
        ("minigpt4-merge", {"num_query_tokens": 5}, "5, but the image's patches merge into 4"),
        ("minigpt4", {"prompt_template": "{prompt}"}, r"expected \{image\} in it, once"),
        ("minigpt4", {"prompt_template": "{image}{image}{prompt}"}, r"expected \{image\} in it"),
    ],
    ids=str,
)
def test_parts_that_do_not_go_together_are_told(tiny_copy, kind, changes, message):
    directory = tiny_copy(kind)
    edit(directory, **changes)
    with pytest.raises(CheckpointError, match=message):
        checkpoint_from_directory(directory)


def test_a_config_without_a_part_is_told(tiny_copy):
    directory = tiny_copy("minigpt4")
    path = directory / "config.json"
    data = json.loads(path.read_text())
    del data["vision_config"], data["num_query_tokens"]
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="has no num_query_tokens, vision_config"):
        checkpoint_from_directory(directory)


def test_a_projection_of_the_wrong_width_is_told(tiny_copy, traces, tmp_path):
    weights = tiny_copy("minigpt4-merge") / "model.safetensors"
    tensors = load_file(weights)
    tensors["language_projection.weight"] = tensors["language_projection.weight"][:, :-32].clone()
    save_file(tensors, weights)
    checkpoint = checkpoint_from_directory(weights.parent)
    message = r"language_projection\.weight has shape \[32, 96\], expected \[32, 128\]"
    with pytest.raises(CheckpointError, match=message):
        graphs_from_checkpoint(
            checkpoint, PrecisionPolicy.parse("fp32"), tmp_path, Silent(), traces=traces
        )
