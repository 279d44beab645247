"""Whole synthetic checkpoints, as transformers and this project open them."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch
import transformers

from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.errors import BuildDirectoryError, OptionError
from iblip.export.models.table import MODELS
from iblip.export.synthesis.checkpoint import Synthesis, synthesize

VICUNA = "instructblip-vicuna-7b"


@pytest.mark.parametrize("name", [VICUNA, "blip2-opt-2.7b", "blip2-flan-t5-xl"])
def test_transformers_opens_one_whole_and_answers(name, small, tmp_path):
    model = small(name)
    out = tmp_path / "out"
    assert synthesize(Synthesis(model=model), out) == 4 * sum(model.parameters.values())
    kind = getattr(transformers, model.architecture)
    loaded, report = kind.from_pretrained(out, output_loading_info=True)
    faults = {key: value for key, value in report.items() if value}
    assert not faults
    checkpoint = checkpoint_from_directory(out)
    pixels = np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8)
    inputs = checkpoint.processor(images=pixels, text="What is it?", return_tensors="pt")
    with torch.no_grad():
        found = loaded.generate(
            **inputs,
            max_new_tokens=3,
            min_new_tokens=3,
            output_logits=True,
            return_dict_in_generate=True,
        )
    assert all(torch.isfinite(logits).any() and logits.std() > 0.1 for logits in found.logits)
    assert checkpoint.synthetic
    assert checkpoint.name == "out"


@pytest.mark.parametrize("name", ["minigpt4-vicuna-7b", "minigpt4-llama-2-7b"])
def test_a_minigpt4_is_opened(name, small, tmp_path):
    synthesize(Synthesis(model=small(name), dtype="bfloat16"), tmp_path / "out")
    checkpoint = checkpoint_from_directory(tmp_path / "out")
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {"bfloat16"}
    assert checkpoint.stop == (("###",) if "vicuna" in name else ())
    assert checkpoint.processor.tokenizer("a").input_ids


def test_weights_are_the_same_in_any_number_of_files(small, tmp_path):
    model = small(VICUNA)
    whole = Synthesis(model=model, dtype="float16", seed=5)
    size = synthesize(whole, tmp_path / "whole")
    cut = Synthesis(model=model, dtype="float16", seed=5, shard=size // 4)
    synthesize(cut, tmp_path / "cut")
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 4
    one, other = (checkpoint_from_directory(tmp_path / name).tensors for name in ("whole", "cut"))
    assert list(one) == list(other)
    assert all(np.array_equal(one[name].read(), other[name].read()) for name in one)


def test_the_config_says_that_it_is_synthetic(small, tmp_path):
    synthesize(Synthesis(model=small(VICUNA), seed=3), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["synthetic"] == {"model": VICUNA, "seed": 3}
    assert "answers mean nothing" in (tmp_path / "out" / "README.md").read_text()


def test_an_older_one_is_replaced_and_nothing_else(small, tmp_path):
    model = small("minigpt4-llama-2-7b")
    synthesize(Synthesis(model=model), tmp_path / "out")
    synthesize(Synthesis(model=model, seed=1), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["synthetic"]["seed"] == 1
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "out", other)
    del config["synthetic"]
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(BuildDirectoryError, match="is not a synthetic checkpoint"):
        synthesize(Synthesis(model=model), other)


def test_a_disk_with_too_little_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    usage = shutil.disk_usage(tmp_path)._replace(free=min(free, 10 << 30))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(BuildDirectoryError, match=r"takes 29\.\d\d GiB, and 10\.00 GiB are free"):
        synthesize(Synthesis(model=MODELS[VICUNA]), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_another_dtype_is_refused():
    with pytest.raises(OptionError, match="--dtype is 'int8'; expected one of float32, float16"):
        Synthesis(model=MODELS[VICUNA], dtype="int8")
