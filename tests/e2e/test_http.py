"""HTTP through the wall: what it does not refuse arrives as it was sent, and so does the answer."""

from __future__ import annotations

import http.client
import json
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient

from iblip.export.images import pixels_from_image
from iblip.serving.server.children import WALL, children_of, model_of

PROMPT = "What digit is it?"
TENSORS = (grpcclient, httpclient)


@pytest.fixture
def address(served):
    return served.server.http_url.removeprefix("http://")


@pytest.fixture
def pixels(served, picture):
    return pixels_from_image(picture, served.manifest.preprocessing)[None]


def inputs(module, pixels, **binary):
    first = module.InferInput("pixels", list(pixels.shape), "UINT8")
    second = module.InferInput("prompt", [1], "BYTES")
    first.set_data_from_numpy(pixels, **binary)
    second.set_data_from_numpy(np.array([PROMPT], dtype=np.object_), **binary)
    return [first, second]


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_it_answers_as_grpc_does(served, address, pixels, binary, compression):
    names = ("text", "finish")
    with grpcclient.InferenceServerClient(served.url) as client:
        expected = client.infer("instructblip_unary", inputs(grpcclient, pixels))
    with httpclient.InferenceServerClient(address, network_timeout=60) as client:
        result = client.infer(
            "instructblip_unary",
            inputs(httpclient, pixels, binary_data=binary),
            outputs=[httpclient.InferRequestedOutput(name, binary_data=binary) for name in names],
            request_compression_algorithm=compression,
            response_compression_algorithm=compression,
            request_id="7",
        )
    assert result.get_response()["id"] == "7"
    assert result.as_numpy("text").tolist() == [
        text if binary else text.decode() for text in expected.as_numpy("text").tolist()
    ]
    assert (
        json.loads(result.as_numpy("finish")[0])["token_ids"]
        == (json.loads(expected.as_numpy("finish")[0])["token_ids"])
    )


def test_tensors_of_megabytes_come_and_go_to_the_bit(served, address, pixels):
    many = np.random.default_rng(0).integers(0, 256, (4, *pixels.shape[1:]), np.uint8)
    results = []
    for module, url in zip(TENSORS, (served.url, address), strict=True):
        tensor = module.InferInput("pixels", list(many.shape), "UINT8")
        tensor.set_data_from_numpy(many)
        with module.InferenceServerClient(url) as client:
            results.append(client.infer("vision_encoder", [tensor]).as_numpy("image_embeds"))
    np.testing.assert_array_equal(*results)


def test_a_stream_arrives_as_it_is_written(served, address, pixels):
    length = 200
    body = {
        "pixels": pixels.ravel().tolist(),
        "prompt": PROMPT,
        "min_new_tokens": length,
        "max_new_tokens": length,
    }
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request("POST", "/v2/models/instructblip/generate_stream", json.dumps(body))
    response = connection.getresponse()
    assert response.getheader("Content-Type").startswith("text/event-stream")
    times, events = [], []
    for line in response:
        if line.startswith(b"data: "):
            times.append(time.monotonic())
            events.append(json.loads(line.removeprefix(b"data: ")))
    assert json.loads(events[-1]["finish"])["completion_tokens"] == length
    assert times[0] < times[-1]  # not in one piece at the end


def test_one_connection_takes_many_requests(address):
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.connect()
    number = connection.sock.fileno()
    for path, status in (("/v2", 200), ("/v2/health/ready", 200), ("/v2/models/nothing", 404)) * 3:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        assert (response.status, connection.sock.fileno()) == (status, number)


def test_triton_tells_of_itself(served, address):
    with httpclient.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.get_server_metadata()["name"] == "triton"
        assert client.get_model_config("instructblip")["name"] == "instructblip"
        assert client.get_inference_statistics("instructblip")["model_stats"]
        index = {model["name"] for model in client.get_model_repository_index()}
    assert {"instructblip", "visual_prompt"} <= index
    with urllib.request.urlopen(served.server.metrics_url, timeout=60) as response:
        assert response.headers["Content-Type"].startswith("text/plain")
        assert b"nv_inference_count" in response.read()


def test_of_callers_who_hang_up_nothing_is_kept(served, address, pixels):
    children = {model_of(child): child for child in children_of(served.server.pid)}
    descriptors = Path(f"/proc/{children[WALL]}/fd")
    body = {"pixels": pixels.ravel().tolist(), "prompt": PROMPT, "max_new_tokens": 900}
    before = len(list(descriptors.iterdir()))
    for _ in range(20):
        connection = http.client.HTTPConnection(address, timeout=60)
        connection.request("POST", "/v2/models/instructblip/generate_stream", json.dumps(body))
        connection.close()
    end = time.monotonic() + 60
    while len(list(descriptors.iterdir())) > before:
        assert time.monotonic() < end
        time.sleep(0.05)
