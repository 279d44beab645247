"""Files as the originals' runners save them: with what their filter leaves behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, OPTForCausalLM, T5ForConditionalGeneration

from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.errors import CheckpointError
from iblip.export.originals.reading import checkpoint_from_original
from tests.export.originals.test_reading import check_same, edit

Tensors = dict[str, torch.Tensor]


def saved_by_runner(model: torch.nn.Module) -> Tensors:
    """LAVIS's `_save_checkpoint`: what is left of the state without the frozen parameters."""
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    return {name: weight for name, weight in model.state_dict().items() if name not in frozen}


def frozen(**parts: torch.nn.Module) -> torch.nn.Module:
    """A model of these parts, none of which is trained."""
    whole = torch.nn.Module()
    for name, part in parts.items():
        whole.add_module(name, part.requires_grad_(False))
    return whole


@pytest.fixture
def left_in(tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """`left_in(pair, "checkpoint", tensors)`: the parts, with more tensors in one of them."""

    def add(pair: Any, part: str, tensors: Tensors) -> dict[str, Path]:
        path = Path(shutil.copy(pair.parts[part], tmp_path / f"{part}.pth"))
        edit(path, lambda saved: saved.update(tensors))
        return {**pair.parts, part: path}

    return add


def test_tied_embeddings_of_t5(tiny_pair, left_in):
    pair = tiny_pair("flant5")
    wanted = checkpoint_from_directory(pair.directory)
    t5 = T5ForConditionalGeneration(wanted.config.text_config)
    shared = torch.from_numpy(wanted.tensors["language_model.shared.weight"].read())
    t5.shared.weight.data.copy_(shared)
    rest = saved_by_runner(frozen(t5_model=t5))
    assert {"t5_model.encoder.embed_tokens.weight", "t5_model.decoder.embed_tokens.weight"} <= (
        rest.keys()
    )
    parts = left_in(pair, "checkpoint", rest)
    found = checkpoint_from_original("lavis", "blip2_t5_instruct/flant5xl", parts)
    assert wanted.tensors.keys() <= found.tensors.keys()
    shared_name = "language_model.shared.weight"
    assert (found.tensors[shared_name].read() == wanted.tensors[shared_name].read()).all()


def test_tied_output_embeddings_of_opt(opt_pair, left_in):
    wanted = checkpoint_from_directory(opt_pair.directory)
    rest = saved_by_runner(frozen(opt_model=OPTForCausalLM(wanted.config.text_config)))
    assert rest.keys() == {"opt_model.lm_head.weight"}
    found = checkpoint_from_original(
        "lavis", "blip2_opt/pretrain_opt2.7b", left_in(opt_pair, "checkpoint", rest)
    )
    assert wanted.tensors.keys() <= found.tensors.keys()


def test_buffers_of_llama(tiny_pair, left_in):
    """transformers of LAVIS's time saved a buffer of each layer's rotary embedding."""
    pair = tiny_pair("vicuna")
    layer = "llm_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    parts = left_in(pair, "checkpoint", {layer: torch.ones(4)})
    found = checkpoint_from_original("lavis", "blip2_vicuna_instruct/vicuna7b", parts)
    check_same(found, checkpoint_from_directory(pair.directory))


def test_a_blip2_on_t5_gives_minigpt4_its_qformer_alone(minigpt4_pairs, left_in, tiny):
    """MiniGPT-4 reads BLIP-2's file, in which the first stage and T5 have left something, too."""
    name, pair = minigpt4_pairs("minigpt4")
    t5 = T5ForConditionalGeneration(checkpoint_from_directory(tiny("flant5")).config.text_config)
    rest = saved_by_runner(frozen(t5_model=t5)) | {"t5_proj.bias": torch.zeros(2)}
    assert "t5_model.encoder.embed_tokens.weight" in rest
    parts = left_in(pair, "qformer", {**rest, "opt_proj.weight": torch.zeros(2, 2)})
    found = checkpoint_from_original("minigpt4", name, parts)
    check_same(found, checkpoint_from_directory(pair.directory))


def test_a_whole_blip2_gives_minigpt4_its_qformer_too(minigpt4_pairs, left_in, tiny):
    """As LAVIS saved it before it left out what is frozen."""
    name, pair = minigpt4_pairs("minigpt4")
    t5 = T5ForConditionalGeneration(checkpoint_from_directory(tiny("flant5")).config.text_config)
    parts = left_in(pair, "qformer", dict(frozen(t5_model=t5).state_dict()))
    found = checkpoint_from_original("minigpt4", name, parts)
    check_same(found, checkpoint_from_directory(pair.directory))


def test_a_language_model_in_8_bits_leaves_its_scales_in_minigpt4s_file(minigpt4_pairs, left_in):
    name, pair = minigpt4_pairs("minigpt4-merge")
    layer = "llama_model.model.layers.0.self_attn.q_proj"
    rest = {f"{layer}.SCB": torch.ones(32), f"{layer}.weight_format": torch.zeros(1)}
    found = checkpoint_from_original("minigpt4", name, left_in(pair, "projection", rest))
    check_same(found, checkpoint_from_directory(pair.directory))


def test_another_tensor_is_still_told(minigpt4_pairs, left_in):
    name, pair = minigpt4_pairs("minigpt4-merge")
    llama = frozen(llama_model=LlamaForCausalLM(LlamaConfig(**SMALL)))
    unknown = {f"{key}s": weight for key, weight in list(llama.state_dict().items())[:1]}
    with pytest.raises(CheckpointError, match=r"llama_model\.model\.embed_tokens\.weights is read"):
        checkpoint_from_original("minigpt4", name, left_in(pair, "projection", unknown))


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 9,
}
