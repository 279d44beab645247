"""Tensors of `.pth` and `.bin` files: found where they lie, and nothing else let in."""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from iblip.export.checkpoint.torch_files import tensors_from_torch_file
from iblip.export.errors import CheckpointError
from iblip.export.weights.recipe import Recipe
from iblip.export.weights.weight import Concatenated, SourceTensor, Zeros


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


def test_tensors_are_read_from_their_place_in_the_file(file: Path) -> None:
    tensors = {
        "single": torch.randn(3, 4),
        "half": torch.randn(5).half(),
        "brain": torch.randn(2, 3).bfloat16(),
        "count": torch.arange(6),
        "scalar": torch.tensor(2.5),
    }
    torch.save(tensors, file)
    found = tensors_from_torch_file(file)
    assert found.keys() == tensors.keys()
    data = file.read_bytes()
    for name, wanted in tensors.items():
        tensor = found[name]
        assert isinstance(tensor, SourceTensor)
        assert tensor.shape == tuple(wanted.shape)
        assert tensor.dtype == str(wanted.dtype).removeprefix("torch.")
        raw = wanted.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert data[tensor.offset : tensor.offset + tensor.length] == raw
        assert tensor.read().tobytes() == raw


def test_views_of_one_storage_are_each_read_right(file: Path) -> None:
    whole = torch.randn(10, 8)
    views = {"rows": whole[2:5], "turned": whole.t(), "corner": whole[1:9:2, 3:6]}
    torch.save(views, file)
    for name, tensor in tensors_from_torch_file(file).items():
        np.testing.assert_array_equal(tensor.read(), views[name].numpy())
        assert tensor.shape == tuple(views[name].shape)


@pytest.mark.parametrize("section", ["model", "state_dict", "model_state_dict"])
def test_the_weights_are_found_beside_a_training_runs_state(file: Path, section: str) -> None:
    torch.save({section: {"a.weight": torch.ones(2)}, "epoch": 3, "config": {"lr": 1e-4}}, file)
    assert tensors_from_torch_file(file).keys() == {"a.weight"}


def test_a_cast_and_a_part_that_no_file_has(file: Path) -> None:
    torch.save({"q": torch.tensor([1.0, 2.0]), "v": torch.tensor([3.0, 4.0])}, file)
    found = tensors_from_torch_file(file)
    zeros = Zeros(name="k", dtype="float32", shape=(2,))
    bias = Concatenated(name="qkv.bias", parts=(found["q"], zeros, found["v"]))
    assert bias.shape == (6,)
    assert bias.sources == (found["q"], found["v"])
    same, cast = (Recipe(source=bias, dtype=dtype) for dtype in ("float32", "float16"))
    assert same.in_place is None
    assert same.evaluate().tolist() == [1, 2, 0, 0, 3, 4]
    assert cast.evaluate().dtype == np.float16
    assert Recipe(source=found["q"], dtype="float32").in_place == found["q"]


def refused(file: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        tensors_from_torch_file(file)
    return str(caught.value)


def test_objects_that_would_run_code_are_refused(file: Path) -> None:
    torch.save({"model": {"a": torch.ones(2)}, "args": argparse.Namespace(lr=1.0)}, file)
    message = refused(file)
    assert "run code" in message
    assert "Save its tensors alone" in message


def test_the_old_form_names_the_command_that_converts_it(file: Path) -> None:
    torch.save({"a": torch.ones(2)}, file, _use_new_zipfile_serialization=False)
    message = refused(file)
    assert "before 1.6" in message
    command = message.partition("python -c ")[2].strip('"')
    assert "weights_only=True" in command


def test_the_converting_command_works(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.ones(2)}, file, _use_new_zipfile_serialization=False)
    command = refused(file).partition("python -c ")[2].strip('"')
    monkeypatch.chdir(file.parent)
    exec(command, {})
    assert tensors_from_torch_file(file.with_name("weights-new.pth"))["a"].read().tolist() == [1, 1]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "not a file of torch.save"), (b"<html>", "not a file of torch.save")],
)
def test_other_files(file: Path, content: bytes, said: str) -> None:
    file.write_bytes(content)
    assert said in refused(file)


def test_a_file_that_is_cut_off(file: Path) -> None:
    torch.save({"a": torch.ones(1000)}, file)
    file.write_bytes(file.read_bytes()[:2000])
    assert "cut off" in refused(file)


def test_a_file_that_was_packed_again(file: Path) -> None:
    torch.save({"a": torch.ones(1000)}, file)
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    assert "compressed" in refused(file)


def test_a_missing_file_and_one_without_tensors(file: Path) -> None:
    assert "No such file" in refused(file)
    torch.save(torch.ones(2), file)
    assert "expected tensors by name" in refused(file)
