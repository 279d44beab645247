"""A step of T5's decoder is one CUDA graph of few launches; its encoder's result stays there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from iblip.engines.language_model.onnx.encoder_decoder import EncoderDecoder
from iblip.engines.language_model.onnx.opening import open_model
from iblip.engines.types import PromptIds
from iblip.export.artifact.manifest import Manifest
from tests.cuda_stub.counting import counted

pytestmark = pytest.mark.cuda_stub

PER_LAYER = 21
"""Self-attention 9 (norm, q, k, v, two writes, attention, its masked rows, o), cross-attention 5
(norm, q, lengths, attention, o), feed-forward 6 (norm, two products, activation, its product with
one, `wo`); and one more, with which flash attention joins the parts of a long source."""

OUTSIDE = 22
"""Embeddings, the bias and its table, lengths, the positions that are wanted, logits."""

LAYERS = 3

PROMPT = PromptIds(ids=(5, 6, 7))


@pytest.fixture(params=["fp16", "bf16"])
def model(
    request: pytest.FixtureRequest, cuda_build: Callable[[str, str], Path]
) -> Iterator[EncoderDecoder]:
    build = cuda_build("instructblip-demo-flant5", request.param)
    model = open_model(build, Manifest.read(build), slots=2)
    assert isinstance(model, EncoderDecoder)
    yield model
    model.close()


def test_a_step_is_one_graph_of_few_launches(model: EncoderDecoder) -> None:
    slots = [model.acquire(), model.acquire()]
    image = np.zeros((1, model.facts.num_query_tokens, model.facts.hidden_size), np.float32)
    for slot in slots:
        model.prefill({slot: model.read(image, PROMPT)}, limit=64)
    assert model.start_token is not None
    with counted() as captured:
        model.step(dict.fromkeys(slots, model.start_token))
    assert captured["captures"] == 1
    assert captured["captured_launches"] <= PER_LAYER * LAYERS + OUTSIDE
    with counted() as replayed:
        model.step(dict.fromkeys(slots, 5))
    assert (replayed["graph_launches"], replayed["launches"]) == (1, 0)
    assert replayed.copies <= 2
    assert replayed["synchronizations"] == 1


def test_the_encoders_result_stays_on_the_gpu(model: EncoderDecoder) -> None:
    slot = model.acquire()
    image = np.zeros((1, model.facts.num_query_tokens, model.facts.hidden_size), np.float32)
    prompt = model.read(image, PROMPT)
    with counted() as counts:
        model.prefill({slot: prompt}, limit=64)
    result = 2 * LAYERS * prompt.positions * model.facts.hidden_size * 2  # bytes
    assert counts["device_to_host_bytes"] < result / 10
    assert counts["host_to_device_bytes"] < result / 2  # the prompt's embeddings
    assert (
        counts["allocations"] - counts["frees"] <= 1 + 8
    )  # the lent block, and ONNX Runtime's own
