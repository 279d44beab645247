"""Another image size: interpolated positions, held against transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from iblip.engines.onnxruntime.runner import OnnxRuntimeRunner
from iblip.export.checkpoint.checkpoint import DEMO, Checkpoint, checkpoint_from_directory
from iblip.export.checkpoint.facts import image_processor_settings, preprocessing
from iblip.export.checkpoint.image_size import POSITIONS, at_image_size
from iblip.export.components.vision_encoder import vision_encoder
from iblip.export.errors import OptionError
from iblip.export.exporter import onnx_from_component
from iblip.export.graph.trace_cache import TraceCache
from iblip.export.progress import Silent


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return checkpoint_from_directory(DEMO)


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> Any:
    from transformers import InstructBlipForConditionalGeneration

    return InstructBlipForConditionalGeneration.from_pretrained(DEMO, dtype=torch.float32).eval()


@pytest.mark.parametrize("size", [48, 96])
@torch.no_grad()
def test_image_features_are_transformers_own(
    size: int, checkpoint: Checkpoint, model: Any, traces: TraceCache, tmp_path: Path
) -> None:
    other = at_image_size(checkpoint, size)
    settings = image_processor_settings(other)
    component = vision_encoder(other.config, settings, precision="fp32")
    graph = onnx_from_component(component, other, tmp_path, Silent(), traces=traces)
    pixels = np.random.default_rng(size).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    images = [Image.fromarray(image) for image in pixels]
    values = other.processor.image_processor(images, return_tensors="pt")["pixel_values"]
    assert values.shape == (2, 3, size, size)
    wanted = model.vision_model(values, interpolate_pos_encoding=True).last_hidden_state
    with OnnxRuntimeRunner(graph.path, graph.contract) as runner:
        found = runner.infer({"pixels": pixels})["image_embeds"]
    assert found.shape == (2, 1 + (size // 12) ** 2, 128)
    np.testing.assert_allclose(found, wanted.numpy(), atol=2e-5)


def test_a_client_resizes_to_the_new_size(checkpoint: Checkpoint) -> None:
    found = preprocessing(at_image_size(checkpoint, 96))
    assert (found.height, found.width) == (96, 96)
    own = preprocessing(checkpoint)
    assert (own.height, own.width) == (72, 72)


def test_patches_that_are_merged_make_more_rows(random_checkpoint: Callable[[str], Path]) -> None:
    merging = checkpoint_from_directory(random_checkpoint("minigpt4-merge"))
    assert merging.config.num_query_tokens == 4
    found = at_image_size(merging, 72)
    assert found.config.num_query_tokens == 9
    assert preprocessing(found).height == 72
    with pytest.raises(OptionError, match="--image-size 60 gives 25 patches, and this model take"):
        at_image_size(merging, 60)


def test_its_own_size_changes_nothing(checkpoint: Checkpoint) -> None:
    assert at_image_size(checkpoint, 72) is checkpoint


def test_the_class_tokens_position_stays(checkpoint: Checkpoint) -> None:
    own = checkpoint.tensors[POSITIONS].read()
    found = at_image_size(checkpoint, 120).tensors[POSITIONS]
    values = found.read()
    assert values.shape == found.shape == (1, 101, 128)
    np.testing.assert_array_equal(values[:, 0], own[:, 0])


@pytest.mark.parametrize("size", [100, 11, 1])
def test_a_size_that_is_no_number_of_patches(size: int, checkpoint: Checkpoint) -> None:
    with pytest.raises(OptionError, match=f"--image-size is {size}; expected a multiple of 12"):
        at_image_size(checkpoint, size)


def test_positions_are_interpolated_once_whatever_the_sizes_between(checkpoint: Checkpoint) -> None:
    through = at_image_size(at_image_size(checkpoint, 48), 96).tensors[POSITIONS]
    np.testing.assert_array_equal(
        through.read(), at_image_size(checkpoint, 96).tensors[POSITIONS].read()
    )
