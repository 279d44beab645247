"""transformers' model streamed from the checkpoint: the same numbers, in the memory of a layer."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.errors import CheckpointError, OptionError
from iblip.export.verification import streamed
from iblip.export.verification.choosing import available_memory, choose_reference
from iblip.export.verification.recording import record
from iblip.export.verification.references import reference_of

KINDS = ("vicuna", "flant5", "opt", "other-opt", "blip2-t5", "minigpt4", "minigpt4-merge")


def asked(checkpoint):
    side = checkpoint.config.vision_config.image_size
    random = np.random.default_rng(0)
    pixels = [random.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(2)]
    return [(f"{i}", Image.fromarray(p), "What colour is the 3?") for i, p in enumerate(pixels)]


def weights(reference):
    return {n: p for part in reference.parts.values() for n, p in part.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_those_of_the_whole_model(tiny, kind):
    checkpoint = checkpoint_from_directory(tiny(kind))
    whole, layered = (reference_of(checkpoint, streamed=way) for way in (False, True))
    for part in whole.parts.values():
        for weight in part.parameters():
            # One row's sums are taken in another order where a matrix lies at another boundary.
            weight.data = weight.data.clone()
    questions = asked(checkpoint)
    wanted, found = (record(way, questions, lambda _: None) for way in (whole, layered))
    for one, other in zip(wanted, found, strict=True):
        arrays = {**one.tensors, **one.blocks}
        assert arrays.keys() == {**other.tensors, **other.blocks}.keys()
        for name, array in {**other.tensors, **other.blocks}.items():
            np.testing.assert_array_equal(array, arrays[name], err_msg=name)
    images, prompts = ([question[i] for question in questions] for i in (1, 2))
    texts = [way.generate(images, prompts, max_new_tokens=5) for way in (whole, layered)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("kind", ["vicuna", "flant5"])
def test_no_more_than_a_layer_is_in_memory(tiny, kind, monkeypatch):
    checkpoint = checkpoint_from_directory(tiny(kind))
    reference = reference_of(checkpoint, streamed=True)

    def held():
        there = [p.numel() for p in weights(reference).values() if p.device.type != "meta"]
        return sum(there)

    most, at_rest = [0], held()
    fill = streamed._fill

    def filled(*arguments):
        fill(*arguments)
        most[0] = max(most[0], held())

    monkeypatch.setattr(streamed, "_fill", filled)
    images, prompts = ([question[i] for question in asked(checkpoint)] for i in (1, 2))
    reference.generate(images, prompts, max_new_tokens=2)
    sizes = [weight.numel() for weight in weights(reference).values()]
    largest = max(sizes)
    assert at_rest < 0.1 * sum(sizes)
    assert largest <= most[0] - at_rest < 1.2 * largest
    assert held() == at_rest


def test_a_module_that_fails_lets_its_weights_go(tiny):
    reference = reference_of(checkpoint_from_directory(tiny("vicuna")), streamed=True)
    with pytest.raises(RuntimeError):
        reference.parts["language_projection"](torch.zeros(1, 3))
    assert reference.parts["language_projection"].weight.device.type == "meta"


def test_a_missing_tensor_is_named(tiny_copy):
    directory = tiny_copy("vicuna")
    tensors = load_file(directory / "model.safetensors")
    del tensors["language_model.model.norm.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"has no language_model\.model\.norm\.weight"):
        reference_of(checkpoint_from_directory(directory), streamed=True)


def test_what_does_not_fit_is_streamed(tiny):
    checkpoint = checkpoint_from_directory(tiny("vicuna"))
    needed = 4 * sum(np.prod(tensor.shape) for tensor in checkpoint.tensors.values())
    choose = partial(choose_reference, checkpoint)
    assert choose(available=needed).streamed
    assert not choose(available=2 * int(needed)).streamed
    assert "B in float32" in choose(available=needed).reason
    assert choose("streamed").streamed
    assert not choose("whole", available=0).streamed
    with pytest.raises(
        OptionError, match="--reference is 'half'; expected one of auto, whole, str"
    ):
        choose("half")
    assert available_memory() > 0
    assert choose_reference(replace(checkpoint, tensors={}), available=1).streamed is False
