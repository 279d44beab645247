"""LoRA inside of an original's `.pth`, as forks of LAVIS and MiniGPT-4 save it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iblip.export.artifact.rebuild_command import rebuild_command
from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.checkpoint.source import ModelSource, alphas_from_words
from iblip.export.errors import CheckpointError, OptionError
from iblip.export.opening import check_source
from iblip.export.originals.reading import checkpoint_from_original
from tests.export.originals.conftest import training_state

OPT = "blip2_opt/pretrain_opt2.7b"
RANK = 4
QUERY = "qformer.encoder.layer.0.attention.attention.query.weight"
LAYER = "model.decoder.layers.1.self_attn.v_proj"
VALUE = f"language_model.{LAYER}.weight"
INSIDE = f"opt_model.base_model.model.{LAYER}"
"""What peft calls that layer in LAVIS's model."""

QFORMER = "Qformer.bert.encoder.layer.0.attention.self.query"


def lora(name: str, *, peft: bool, seed: int = 0) -> dict[str, torch.Tensor]:
    """Both matrices of a square layer of 32, by peft's names or by those of a layer of its own."""
    torch.manual_seed(seed)
    end = ".default.weight" if peft else ""
    return {
        f"{name}.lora_A{end}": torch.randn(RANK, 32),
        f"{name}.lora_B{end}": torch.randn(32, RANK),
    }


@pytest.fixture
def with_lora(opt_pair: Any, tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """`with_lora(tensors)`: the parts of a BLIP-2, and a fine-tuning with these tensors over it."""

    def make(tensors: dict[str, torch.Tensor], **state: Any) -> dict[str, Path]:
        path = tmp_path / "checkpoint_best.pth"
        torch.save({**training_state(tensors), **state}, path)
        return {**opt_pair.parts, "base": opt_pair.parts["checkpoint"], "checkpoint": path}

    return make


def product(tensors: dict[str, torch.Tensor]) -> np.ndarray:
    down, up = tensors.values()
    return (up @ down).numpy()


def test_it_is_merged_with_the_alpha_of_each_component(with_lora, opt_pair):
    """The language model's by peft, the Q-Former's by a layer of its own, with other alphas."""
    llm, qformer = lora(INSIDE, peft=True), lora(QFORMER, peft=False, seed=1)
    parts = with_lora({**llm, **qformer, "opt_proj.bias": torch.ones(32)})
    alphas = {"": 8.0, "qformer": 16.0}
    found = checkpoint_from_original("lavis", OPT, parts, alphas).tensors
    wanted = checkpoint_from_directory(opt_pair.directory).tensors
    assert found.keys() == wanted.keys()
    changes = {VALUE: 8 / RANK * product(llm), QUERY: 16 / RANK * product(qformer)}
    for name, weight in wanted.items():
        expected = weight.read() + changes.get(name, 0)
        if name == "language_projection.bias":
            expected = np.ones(32, np.float32)
        np.testing.assert_allclose(found[name].read(), expected, atol=2e-5, err_msg=name)


def test_a_frozen_weight_that_peft_saved_is_the_one_that_is_merged_into(with_lora):
    own = torch.full((32, 32), 0.5)
    tensors = lora(INSIDE, peft=True)
    parts = with_lora({**tensors, f"{INSIDE}.base_layer.weight": own})
    found = checkpoint_from_original("lavis", OPT, parts, {"": 4.0}).tensors[VALUE].read()
    np.testing.assert_allclose(found, 0.5 + product(tensors), atol=2e-5)


def test_the_alpha_of_the_training_is_taken_from_the_file(with_lora, opt_pair):
    tensors = lora(INSIDE, peft=True)
    parts = with_lora(tensors, config={"model": {"lora_r": RANK, "lora_alpha": 12}, "run": {}})
    before = checkpoint_from_directory(opt_pair.directory).tensors[VALUE].read()
    for alphas, alpha in (({}, 12), ({"language_model": 2.0}, 2)):
        found = checkpoint_from_original("lavis", OPT, parts, alphas).tensors[VALUE].read()
        expected = before + alpha / RANK * product(tensors)
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("more", "alphas", "message"),
    [
        ({}, {}, r"LoRA of rank 4 on Qformer.*query, and does not say its alpha.*--lora-alpha"),
        ({f"{QFORMER}.weight": torch.zeros(32, 32)}, {"": 1.0}, "beside its lora_A and lora_B"),
        ({f"{INSIDE}.lora_A.default.weight": torch.zeros(4, 32)}, {"": 1.0}, "has no lora_B"),
        ({f"{INSIDE}.lora_magnitude_vector": torch.zeros(32)}, {"": 1.0}, "a kind of adapter"),
        (lora("opt_model.x", peft=True), {"": 1.0}, r"weights that no part has:\n  opt_model\.x"),
        (
            {f"{INSIDE}.lora_A.w": torch.zeros(4, 32), f"{INSIDE}.lora_B.w": torch.zeros(9, 4)},
            {"": 1.0},
            "a kind of adapter",
        ),
        (
            {
                f"{INSIDE}.lora_A.weight": torch.zeros(4, 32),
                f"{INSIDE}.lora_B.weight": torch.zeros(9, 4),
            },
            {"": 1.0},
            "do not fit",
        ),
    ],
)
def test_what_cannot_be_merged_is_told(with_lora, more, alphas, message):
    parts = with_lora({**lora(QFORMER, peft=False), **more})
    with pytest.raises(CheckpointError, match=message):
        checkpoint_from_original("lavis", OPT, parts, alphas)


def test_lora_of_a_later_file_takes_the_place_of_an_earlier_ones(with_lora, opt_pair, tmp_path):
    """As in the original, which loads both into the same parameters: they are not added up."""
    first, second = lora(INSIDE, peft=True), lora(INSIDE, peft=True, seed=5)
    parts = with_lora(second)
    released = torch.load(parts["base"])["model"]
    torch.save(training_state({**released, **first}), tmp_path / "first.pth")
    parts = {**parts, "base": tmp_path / "first.pth"}
    before = checkpoint_from_directory(opt_pair.directory).tensors[VALUE].read()
    found = checkpoint_from_original("lavis", OPT, parts, {"": 4.0}).tensors[VALUE].read()
    np.testing.assert_allclose(found, before + product(second), atol=2e-5)
    parts = {**parts, **with_lora({f"{INSIDE}.weight": torch.zeros(32, 32)})}
    parts["base"] = tmp_path / "first.pth"
    with pytest.raises(
        CheckpointError, match=r"--part checkpoint has .* whole, and --part base has"
    ):
        checkpoint_from_original("lavis", OPT, parts, {"": 4.0})


def test_lora_of_several_adapters_in_one_file_is_refused(with_lora):
    tensors = lora(INSIDE, peft=True)
    other = {n.replace("default", "my-other"): t for n, t in lora(INSIDE, peft=True).items()}
    parts = with_lora({**tensors, **other})
    with pytest.raises(CheckpointError, match="another lora_A of the same layer, so of several"):
        checkpoint_from_original("lavis", OPT, parts, {"": 4.0})
    parts = with_lora({f"{INSIDE}{own}.weight": torch.zeros(32, 32) for own in ("", ".base_layer")})
    with pytest.raises(CheckpointError, match=r"base_layer\.weight is one of two tensors"):
        checkpoint_from_original("lavis", OPT, parts)


@pytest.mark.parametrize(
    "wrapper", ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."]
)
def test_wrappers_around_any_module_are_taken_off(with_lora, opt_pair, wrapper):
    """What peft has in `modules_to_save`, too."""
    tensors, head = lora(INSIDE, peft=True), torch.full((32,), 2.0)
    own = {
        name.replace(".layers.1.", f".layers.1.{wrapper}"): tensor
        for name, tensor in tensors.items()
    }
    saved = {
        f"{wrapper}opt_proj.modules_to_save.default.bias": head,
        "opt_proj.original_module.bias": head + 1,
    }
    found = checkpoint_from_original("lavis", OPT, with_lora({**own, **saved}), {"": 4.0}).tensors
    before = checkpoint_from_directory(opt_pair.directory).tensors[VALUE].read()
    np.testing.assert_allclose(found[VALUE].read(), before + product(tensors), atol=2e-5)
    assert (found["language_projection.bias"].read() == 2).all()


def test_an_alpha_without_lora_is_told(opt_pair):
    with pytest.raises(OptionError, match="no part has LoRA"):
        checkpoint_from_original("lavis", OPT, opt_pair.parts, {"": 8.0})
    with pytest.raises(OptionError, match="--lora-alpha is for LoRA inside of an original's file"):
        check_source(ModelSource(model=str(opt_pair.directory), lora_alpha={"": 8.0}))


def test_alphas_are_read_checked_and_recorded():
    assert alphas_from_words(["8", "qformer=16"]) == {"": 8.0, "qformer": 16.0}
    for words in (["x"], ["8", "9"], ["qformer="]):
        with pytest.raises(OptionError, match="--lora-alpha"):
            alphas_from_words(words)
    for alphas in ({"": 0.0}, {"vit": 8.0}, {"": float("nan")}):
        with pytest.raises(OptionError, match="expected a number above 0"):
            ModelSource(model="lavis:x", lora_alpha=alphas)
    source = ModelSource(model=f"lavis:{OPT}", lora_alpha={"": 8.0, "qformer": 16.0})
    assert ModelSource.from_json(json.loads(json.dumps(source.to_json()))) == source
    command = rebuild_command(Path("there"), {"source": source.to_json()})
    assert "--lora-alpha 8.0 --lora-alpha qformer=16.0" in command
