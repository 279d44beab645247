"""Files of a fine-tuning with less in them than the released file, over the one they began from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.errors import CheckpointError
from iblip.export.originals.reading import checkpoint_from_original
from tests.export.originals.conftest import training_state
from tests.export.originals.test_reading import check_same

OPT = "blip2_opt/pretrain_opt2.7b"
PROJECTION = "language_projection.weight"


@pytest.fixture
def trained(tmp_path: Path) -> Callable[[Mapping[str, torch.Tensor]], Path]:
    """`trained(tensors)`: a `checkpoint_3.pth` of LAVIS's runner, with these alone."""

    def save(tensors: Mapping[str, torch.Tensor]) -> Path:
        torch.save(training_state(dict(tensors)), tmp_path / "checkpoint_3.pth")
        return tmp_path / "checkpoint_3.pth"

    return save


def overlaid(parts: Mapping[str, Path], part: str, file: Path) -> dict[str, Path]:
    """The parts with `file` over the one that is there."""
    return {**parts, "base": parts[part], part: file}


def test_what_was_trained_lies_over_the_base(opt_pair, trained):
    new = torch.full((32, 32), 3.0)
    parts = overlaid(opt_pair.parts, "checkpoint", trained({"opt_proj.weight": new}))
    found = checkpoint_from_original("lavis", OPT, parts)
    wanted = checkpoint_from_directory(opt_pair.directory).tensors
    assert found.tensors.keys() == wanted.keys()
    for name, tensor in found.tensors.items():
        expected = new.numpy() if name == PROJECTION else wanted[name].read()
        assert (tensor.read() == expected).all(), name
    digests = found.digests()
    assert {"base/model.pth", "checkpoint/checkpoint_3.pth"} < digests.keys()


def test_a_trained_vit_wins_over_the_vits_own_file(opt_pair, trained):
    new = torch.full((1, 1, 32), 5.0)
    parts = overlaid(opt_pair.parts, "checkpoint", trained({"visual_encoder.cls_token": new}))
    tensors = checkpoint_from_original("lavis", OPT, parts).tensors
    assert (tensors["vision_model.embeddings.class_embedding"].read() == 5).all()


def test_without_the_base_it_is_told_what_is_missing_and_what_to_do(opt_pair, trained):
    parts = {**opt_pair.parts, "checkpoint": trained({"opt_proj.bias": torch.zeros(32)})}
    with pytest.raises(CheckpointError) as error:
        checkpoint_from_original("lavis", OPT, parts)
    assert "checkpoint: query_tokens is missing" in str(error.value)
    assert "--part base=FILE" in str(error.value)


def test_what_neither_file_has_is_missing_in_the_checkpoint(opt_pair, trained, tmp_path):
    base = tmp_path / "base.pth"
    tensors = torch.load(opt_pair.parts["checkpoint"])["model"]
    del tensors["ln_vision.weight"]
    torch.save({"model": tensors}, base)
    file = trained({"opt_proj.bias": torch.zeros(32)})
    parts = {**opt_pair.parts, "base": base, "checkpoint": file}
    with pytest.raises(CheckpointError, match=r"checkpoint: ln_vision\.weight is missing"):
        checkpoint_from_original("lavis", OPT, parts)


def test_minigpt4s_stages_lie_over_one_another(minigpt4_pairs, trained):
    name, pair = minigpt4_pairs("minigpt4")
    new = torch.full((32,), 2.0)
    parts = overlaid(pair.parts, "projection", trained({"llama_proj.bias": new}))
    tensors = checkpoint_from_original("minigpt4", name, parts).tensors
    wanted = checkpoint_from_directory(pair.directory).tensors
    assert (tensors["language_projection.bias"].read() == 2).all()
    assert (tensors[PROJECTION].read() == wanted[PROJECTION].read()).all()


@pytest.mark.parametrize("wrapper", ["module.", "module._orig_mod."])
def test_a_state_of_distributed_training_has_the_models_own_names(
    opt_pair, tmp_path, wrapper: str
) -> None:
    tensors: dict[str, Any] = torch.load(opt_pair.parts["checkpoint"])["model"]
    path = tmp_path / "checkpoint_best.pth"
    torch.save(training_state({f"{wrapper}{name}": t for name, t in tensors.items()}), path)
    found = checkpoint_from_original("lavis", OPT, {**opt_pair.parts, "checkpoint": path})
    check_same(found, checkpoint_from_directory(opt_pair.directory))
