"""BLIP-2 on OPT through a real Triton server: an ensemble without an instruction."""

from __future__ import annotations

import pytest

from iblip.engines.pipeline import Pipeline
from iblip.export.images import pixels_from_image
from iblip.serving.client import Client, GenerationOptions
from iblip.serving.repository.assembling import REPOSITORY
from iblip.serving.server.server import TritonServer


@pytest.fixture(scope="module")
def server(blip2_build):
    with TritonServer(blip2_build / REPOSITORY) as running:
        yield running


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "min_new_tokens": 6}], ids=str)
def test_answers_are_those_of_the_same_build_in_process(server, blip2_build, examples, options):
    asked = GenerationOptions(**options)
    with Pipeline(blip2_build) as pipeline, Client(server.grpc_url) as client:
        said = set()
        prompts = [*(example.prompt for example in examples[:3]), ""]  # a caption, at last
        for example, prompt in zip(examples, prompts, strict=False):
            pixels = pixels_from_image(example.image, pipeline.manifest.preprocessing)
            wanted = pipeline.answer(pixels, prompt, asked)
            found = client.ask(example.image, prompt, options=asked)
            assert (found.text, found.token_ids) == (wanted.text, wanted.token_ids)
            said.add(found.text)
        assert len(said) > 1
        assert client.contract().limits.max_instruction is None


def test_an_answer_streams(server, examples):
    options = GenerationOptions(min_new_tokens=8, max_new_tokens=8)
    with (
        Client(server.grpc_url) as client,
        client.stream(examples[0].image, "a photo of", options=options) as stream,
    ):
        pieces = list(stream)
        assert "".join(pieces) == stream.answer.text
    assert stream.answer.completion_tokens == 8
