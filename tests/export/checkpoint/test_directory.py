"""The weights of a Hugging Face directory, whichever files they lie in."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from iblip.export.checkpoint.directory import tensors_from_directory
from iblip.export.errors import CheckpointError

TENSORS = {
    "model.embed.weight": torch.arange(12, dtype=torch.float32).reshape(4, 3),
    "lm_head.weight": torch.arange(6, dtype=torch.float16).reshape(2, 3),
}


def write(directory, name, save, *, pieces):
    if not pieces:
        save(TENSORS, directory / name)
        return
    stem, suffix = name.rsplit(".", 1)
    weight_map = {key: f"{stem}-{i}.{suffix}" for i, key in enumerate(TENSORS)}
    for key, piece in weight_map.items():
        save({key: TENSORS[key]}, directory / piece)
    (directory / f"{name}.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("pieces", [False, True], ids=["one file", "pieces"])
@pytest.mark.parametrize(
    ("name", "save"),
    [("model.safetensors", save_file), ("pytorch_model.bin", torch.save)],
    ids=["safetensors", "bin"],
)
def test_tensors_read_as_they_were_saved(tmp_path, name, save, pieces):
    write(tmp_path, name, save, pieces=pieces)
    found = tensors_from_directory(tmp_path)
    assert found.keys() == TENSORS.keys()
    for key, wanted in TENSORS.items():
        np.testing.assert_array_equal(found[key].read(), wanted.numpy())


def test_safetensors_come_before_bin(tmp_path):
    write(tmp_path, "model.safetensors", save_file, pieces=False)
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    assert tensors_from_directory(tmp_path).keys() == TENSORS.keys()


def test_a_directory_without_weights_says_what_is_looked_for(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        tensors_from_directory(tmp_path)


def test_a_missing_piece_is_named(tmp_path):
    write(tmp_path, "model.safetensors", save_file, pieces=True)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-1\.safetensors: missing, of 2 pieces"):
        tensors_from_directory(tmp_path)


def test_a_piece_without_what_the_index_says_is_named(tmp_path):
    write(tmp_path, "pytorch_model.bin", torch.save, pieces=True)
    torch.save({"other": torch.ones(1)}, tmp_path / "pytorch_model-1.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model-1\.bin: without tensors"):
        tensors_from_directory(tmp_path)


def test_weights_in_other_forms_are_named(tmp_path):
    (tmp_path / "flax_model.msgpack").touch()
    with pytest.raises(CheckpointError, match=r"It has flax_model\.msgpack, which cannot be read"):
        tensors_from_directory(tmp_path)


@pytest.mark.parametrize(
    "name", ["language_model.q_proj.lora_A.weight", "language_model.q_proj.base_layer.weight"]
)
def test_an_adapter_in_the_weights_says_how_to_merge_it(tmp_path, name):
    save_file({**TENSORS, name: torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{name} is one of 1 .*merge_and_unload"):
        tensors_from_directory(tmp_path)


def test_an_adapter_beside_the_weights_names_its_model(tmp_path):
    write(tmp_path, "model.safetensors", save_file, pieces=False)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    with pytest.raises(CheckpointError, match=r"LoRA adapter of some/base that is not merged"):
        tensors_from_directory(tmp_path)


def test_an_index_that_is_none_is_told(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": []}')
    with pytest.raises(CheckpointError, match="is no index of weights"):
        tensors_from_directory(tmp_path)
