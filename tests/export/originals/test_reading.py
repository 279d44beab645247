"""LAVIS's and MiniGPT-4's files to the same checkpoint as the Hugging Face form of the model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.checkpoint.facts import (
    image_processor_settings,
    language_model_facts,
    preprocessing,
)
from iblip.export.checkpoint.image_size import InterpolatedPositions
from iblip.export.errors import CheckpointError, OptionError
from iblip.export.originals.reading import checkpoint_from_original

OPT = "blip2_opt/pretrain_opt2.7b"


def lavis(parts, name=OPT):
    return checkpoint_from_original("lavis", name, parts)


def edit(path, change):
    """Rewrites what a training run has saved, by `change` of its tensors."""
    saved = torch.load(path)
    change(saved["model"])
    torch.save(saved, path)


def check_same(found, wanted):
    assert found.tensors.keys() == wanted.tensors.keys()
    for name, tensor in wanted.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found.tensors[name].read(), tensor.read(), err_msg=name)
    facts = language_model_facts(found)
    # The originals' files have no generation config.
    assert facts.default_max_new_tokens == wanted.family.max_new_tokens
    own = ("default_max_new_tokens", "start_token_id", "bytes_apart")
    changes = {name: getattr(facts, name) for name in own}
    assert facts == replace(language_model_facts(wanted), **changes)
    assert preprocessing(found) == preprocessing(wanted)
    ours, theirs = image_processor_settings(found), image_processor_settings(wanted)
    for field in ("image_mean", "image_std", "rescale_factor"):
        assert ours[field] == pytest.approx(theirs[field])


def check_same_ids(found, wanted, text="How many digits are there?"):
    for name in ("tokenizer", "qformer_tokenizer"):
        ours = getattr(found.processor, name, None)
        if ours is not None:
            assert ours(text).input_ids == getattr(wanted.processor, name)(text).input_ids


def test_t5_from_lavis_is_the_same_checkpoint(flant5_pair):
    found = lavis(flant5_pair.parts, "blip2_t5_instruct/flant5xl")
    wanted = checkpoint_from_directory(flant5_pair.directory)
    check_same(found, wanted)
    check_same_ids(found, wanted)


def test_vicuna_from_lavis_is_the_same_checkpoint(vicuna_pair):
    found = lavis(vicuna_pair.parts, "blip2_vicuna_instruct/vicuna7b")
    wanted = checkpoint_from_directory(vicuna_pair.directory)
    check_same(found, wanted)
    check_same_ids(found, wanted)


def test_prompts_to_vicuna_begin_with_what_lavis_makes_bos(vicuna_pair):
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(vicuna_pair.parts["language_model"])
    ours = lavis(vicuna_pair.parts, "blip2_vicuna_instruct/vicuna7b").processor.tokenizer
    assert plain.convert_ids_to_tokens(plain("What digit?").input_ids)[0] == "<s>"
    assert ours.convert_ids_to_tokens(ours("What digit?").input_ids)[0] == "</s>"
    assert ours("What digit?").input_ids[1:] == plain("What digit?").input_ids[1:]


def test_opt_from_lavis_is_the_same_checkpoint(opt_pair):
    found, wanted = lavis(opt_pair.parts), checkpoint_from_directory(opt_pair.directory)
    check_same(found, wanted)
    check_same_ids(found, wanted)


@pytest.mark.parametrize("kind", ["minigpt4", "minigpt4-merge"])
def test_minigpt4s_files_are_the_same_checkpoint(minigpt4_pairs, kind):
    name, pair = minigpt4_pairs(kind)
    found = checkpoint_from_original("minigpt4", name, pair.parts)
    wanted = checkpoint_from_directory(pair.directory)
    assert found.config == wanted.config
    check_same(found, wanted)
    check_same_ids(found, wanted)


def test_every_file_of_a_part_has_a_digest(flant5_pair):
    found = lavis(flant5_pair.parts, "blip2_t5_instruct/flant5xl").digests()
    assert found.keys() == {
        "checkpoint/model.pth",
        "vit/model.pth",
        "language_model/config.json",
        "language_model/pytorch_model.bin",
        "config/config.json",
    }
    assert all(len(digest) == 64 for digest in found.values())


def test_opt_without_its_models_prefix_is_read_too(opt_parts):
    weights = opt_parts["language_model"] / "pytorch_model.bin"
    tensors = torch.load(weights)
    torch.save({name.removeprefix("model."): tensor for name, tensor in tensors.items()}, weights)
    assert "language_model.model.decoder.embed_tokens.weight" in lavis(opt_parts).tensors


def test_a_fault_of_a_config_names_the_part_that_it_is_in(opt_parts):
    config = json.loads(opt_parts["config"].read_text())
    del config["image_token_index"]
    opt_parts["config"].write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as error:
        language_model_facts(lavis(opt_parts))
    assert str(error.value).startswith(f"{opt_parts['config']} has no image_token_index")


def test_what_lavis_has_trained_wins_over_the_parts(opt_parts):
    def train(tensors):
        tensors["visual_encoder.cls_token"] = torch.full((1, 1, 32), 5.0)
        tensors["opt_model.model.decoder.final_layer_norm.weight"] = torch.full((32,), 6.0)

    edit(opt_parts["checkpoint"], train)
    tensors = lavis(opt_parts).tensors
    assert (tensors["vision_model.embeddings.class_embedding"].read() == 5).all()
    assert (tensors["language_model.model.decoder.final_layer_norm.weight"].read() == 6).all()


def test_a_whole_checkpoint_needs_no_vit(opt_parts):
    vit = torch.load(opt_parts.pop("vit"))
    blocks = {n: t for n, t in vit.items() if n.startswith(("blocks.0.", "blocks.1."))}
    front = {n: t for n, t in vit.items() if n.startswith(("cls", "pos", "patch"))}
    whole = {f"visual_encoder.{name}": t for name, t in {**blocks, **front}.items()}
    edit(opt_parts["checkpoint"], lambda tensors: tensors.update(whole))
    assert "vision_model.embeddings.class_embedding" in lavis(opt_parts).tensors


def test_positions_of_other_pictures_are_interpolated(opt_parts):
    config = json.loads(opt_parts["config"].read_text())
    config["vision_config"]["image_size"] *= 2
    opt_parts["config"].write_text(json.dumps(config))
    found = lavis(opt_parts)
    positions = found.tensors["vision_model.embeddings.position_embedding"]
    assert isinstance(positions, InterpolatedPositions)
    assert positions.shape == (1, 17, 32)
    assert preprocessing(found).height == 48


@pytest.mark.parametrize(
    ("name", "known"),
    [("blip2_opt/opt2.7b", "lavis:blip2_opt/pretrain_opt2.7b"), ("", "lavis:blip2_t5/pretrain")],
)
def test_an_unknown_name_lists_the_known(opt_parts, name, known):
    with pytest.raises(OptionError, match=known):
        lavis(opt_parts, name)


@pytest.mark.parametrize("part", ["checkpoint", "vit", "language_model"])
def test_a_missing_part_lists_all_of_them(opt_parts, part):
    del opt_parts[part]
    with pytest.raises(OptionError) as error:
        lavis(opt_parts)
    message = str(error.value)
    assert f"--part {part}=… is missing" in message
    for line in (
        "checkpoint: LAVIS's own file: Q-Former, projection, and what else was trained"
        " (blip2_pretrained_opt2.7b.pth).",
        "vit: EVA's ViT-g, of which LAVIS takes 39 blocks (eva_vit_g.pth).",
        "(facebook/opt-2.7b).",
    ):
        assert line in message


def test_an_unknown_part_is_told(opt_parts):
    with pytest.raises(OptionError, match="there is no part 'qformer'"):
        lavis({**opt_parts, "qformer": opt_parts["checkpoint"]})


def test_a_part_that_is_not_there_is_told(opt_parts, tmp_path):
    with pytest.raises(CheckpointError, match=r"--part vit=.*none\.pth: there is no such file"):
        lavis({**opt_parts, "vit": tmp_path / "none.pth"})


def test_a_file_that_is_none_of_torchs_is_told(opt_parts):
    opt_parts["vit"].write_text("<html>Not found</html>")
    with pytest.raises(CheckpointError, match=r"vit-model\.pth is not a file of torch\.save"):
        lavis(opt_parts)


def test_a_missing_tensor_has_the_files_own_name_and_the_nearest(opt_parts):
    def rename(tensors):
        layer = "Qformer.bert.encoder.layer.0.attention.self"
        tensors[f"{layer}.qeury.weight"] = tensors.pop(f"{layer}.query.weight")

    edit(opt_parts["checkpoint"], rename)
    with pytest.raises(CheckpointError) as error:
        lavis(opt_parts)
    message = str(error.value)
    wanted = "checkpoint: Qformer.bert.encoder.layer.0.attention.self.query.weight"
    found = wanted.replace("query.weight", "qeury.weight")
    assert f"{wanted} is missing (nearest: {found})" in message
    assert f"{found} is read by no graph (nearest that is: {wanted})" in message


def test_a_bias_of_the_vit_that_is_missing_is_told(opt_parts):
    vit = torch.load(opt_parts["vit"])
    del vit["blocks.1.attn.v_bias"]
    torch.save(vit, opt_parts["vit"])
    with pytest.raises(CheckpointError, match=r"vit: blocks\.1\.attn\.q_bias \(and v_bias\) is mi"):
        lavis(opt_parts)


def test_a_tensor_of_another_shape_is_told(opt_parts):
    edit(opt_parts["checkpoint"], lambda t: t.update({"ln_vision.bias": torch.zeros(7)}))
    message = r"checkpoint: ln_vision\.bias has shape \[7\], expected \[32\]"
    with pytest.raises(CheckpointError, match=message):
        lavis(opt_parts)


def test_adapters_must_be_merged_first(opt_parts):
    name = "opt_model.base_model.model.layers.0.self_attn.q_proj.lora_A.weight"
    edit(opt_parts["checkpoint"], lambda t: t.update({name: torch.zeros(4, 32)}))
    with pytest.raises(CheckpointError, match=r"checkpoint holds LoRA adapters.*merge_and_unload"):
        lavis(opt_parts)


def test_a_directory_of_adapters_is_told(opt_parts):
    (opt_parts["language_model"] / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        lavis(opt_parts)


def test_another_language_model_is_told(opt_parts, flant5_pair):
    del opt_parts["config"]
    opt_parts["language_model"] = flant5_pair.parts["language_model"]
    with pytest.raises(CheckpointError, match=r"holds a t5; blip2-opt-2\.7b is on a opt"):
        lavis(opt_parts)


def test_a_projection_of_another_model_names_both_widths_and_whose_it_is(opt_parts):
    del opt_parts["config"]  # as the released model is: 32 wide is none of those

    def widen(tensors):
        tensors["opt_proj.weight"] = torch.zeros(4096, 768)

    edit(opt_parts["checkpoint"], widen)
    with pytest.raises(CheckpointError) as error:
        lavis(opt_parts)
    message = str(error.value)
    assert "takes 768 features and gives 4096" in message
    assert "a language model that is 32 wide" in message
    assert "lavis:blip2_opt/pretrain_opt6.7b" in message


def test_minigpt4s_projection_without_a_qformer_is_told_from_that_with_one(minigpt4_pairs):
    _, pair = minigpt4_pairs("minigpt4-merge")
    config = json.loads(pair.parts["config"].read_text())
    parts = dict(pair.parts)
    edited = parts["projection"].with_name("other.pth")
    shutil.copy(parts["projection"], edited)
    edit(edited, lambda t: t.update({"llama_proj.weight": torch.zeros(4096, 768)}))
    parts["projection"] = edited
    with pytest.raises(CheckpointError) as error:
        checkpoint_from_original("minigpt4", "llama2-7b", parts)
    width = config["vision_config"]["hidden_size"] * 4
    assert f"the other parts have {width}" in str(error.value)
    assert "It is that of minigpt4:vicuna7b" in str(error.value)


def test_a_norm_that_minigpt4_never_saved_is_a_new_one(minigpt4_pairs, tmp_path):
    name, pair = minigpt4_pairs("minigpt4-merge")
    parts = {**pair.parts, "projection": tmp_path / "frozen.pth"}
    shutil.copy(pair.parts["projection"], parts["projection"])

    def freeze(tensors):
        for key in ("ln_vision.weight", "ln_vision.bias"):
            del tensors[key]

    edit(parts["projection"], freeze)
    tensors = checkpoint_from_original("minigpt4", name, parts).tensors
    assert (tensors["vision_model.post_layernorm.weight"].read() == 1).all()
    assert (tensors["vision_model.post_layernorm.bias"].read() == 0).all()
