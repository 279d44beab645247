"""What an operator allows, in the config of the language model: a request beyond it is refused."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from export.errors import ServingError
from export.images import pixels_from_image
from export.manifest import Manifest
from serving.client import (
    GenerationOptions,
    InputError,
    InstructBlipClient,
    OptionError,
    QueueFullError,
)
from serving.model_config import read_config, set_parameter, write_config
from serving.repository import REPOSITORY
from serving.server import TritonServer


@pytest.fixture
def edited(vicuna_build, tmp_path):
    """`edited(slots="2")`: a copy of the build whose operator chose otherwise."""

    def make(**parameters):
        build = tmp_path / "build"
        shutil.copytree(vicuna_build, build, symlinks=True)
        path = build / REPOSITORY / "language_model" / "config.pbtxt"
        config = read_config(path)
        for name, value in parameters.items():
            set_parameter(config, name, value)
        write_config(config, path)
        return build

    return make


def test_beyond_the_limits_a_request_is_refused_by_name(edited, examples):
    build = edited(slots="2", max_length="40", queue="1")
    picture = examples[0].image
    with (
        TritonServer(build / REPOSITORY) as server,
        InstructBlipClient(server.grpc_url) as client,
    ):
        for options in ({"num_beams": 3}, {"n": 3, "temperature": 1.0}):
            with pytest.raises(OptionError, match=r"is 3; this engine has 2 slots.*`--slots` of"):
                client.ask(picture, "What?", options=GenerationOptions(**options))
        with pytest.raises(InputError, match=r"at most 31 fit\. max_length is 40.*`--max-length`"):
            client.ask(picture, "digit " * 40)
        answer = client.ask(picture, "What?", options=GenerationOptions(min_new_tokens=5))
        assert answer.prompt_tokens + answer.completion_tokens <= 40

        pixels = pixels_from_image(picture, Manifest.read(build).preprocessing)[None]
        found = _flood(client, server.grpc_url, picture, pixels)
        assert found == {(QueueFullError, True), ("StatusCode.UNAVAILABLE", True)}
        assert client.ask(picture, "What?").finish_reason in ("eos", "length")


def _flood(client, url, picture, pixels):
    """How requests fail, of both models, while two wide ones follow each other for a while."""
    long = GenerationOptions(num_beams=2, min_new_tokens=20, max_new_tokens=20)

    def ask():
        try:
            client.ask(picture, "What?", options=long)
        except QueueFullError as error:
            return (QueueFullError, "1 requests are waiting" in str(error))
        return None

    def ask_unary():
        inputs = [
            grpcclient.InferInput("pixels", list(pixels.shape), "UINT8"),
            grpcclient.InferInput("prompt", [1], "BYTES"),
        ]
        inputs[0].set_data_from_numpy(pixels)
        inputs[1].set_data_from_numpy(np.array([b"What?"], dtype=np.object_))
        with grpcclient.InferenceServerClient(url) as unary:
            try:
                unary.infer("instructblip_unary", inputs)
            except InferenceServerException as error:
                return (error.status(), "QueueFullError: 1 requests" in error.message())
        return None

    with ThreadPoolExecutor(24) as pool:
        ways = [ask, ask, ask_unary] * 50
        return set(pool.map(lambda way: way(), ways)) - {None}


def test_a_limit_that_no_model_has_is_told(edited):
    build = edited(max_length="5000")
    with (
        pytest.raises(ServingError, match=r"language_model: .*max_length is 5000; this model has"),
        TritonServer(build / REPOSITORY),
    ):
        pass
