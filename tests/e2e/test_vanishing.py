"""Callers that are killed in the middle of their answers: their places are free at once."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from urllib.parse import urlsplit

import grpc
import pytest

from iblip.export.images import pixels_from_image
from iblip.serving.client import GenerationOptions
from iblip.serving.client.messages import infer_request
from iblip.serving.client.protocol import ModelInferRequest, Service

LIMIT_S = 60

CALLER = """
import base64, json, sys, urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import tritonclient.grpc as grpc

from iblip.export.images import pixels_from_image
from iblip.serving.client import Client

_, image, url, http, length, way = sys.argv
PROMPT = "Describe the image."
options = {name: int(length) for name in ("min_new_tokens", "max_new_tokens")}
options |= {"temperature": 5.0, "n": 8, "seed": 1}
client = Client(url)
pixels = pixels_from_image(image, client.contract().preprocessing)[None]
numbers, text = pixels.ravel().tolist(), np.array([PROMPT.encode()], dtype=np.object_)

def by_client(_):
    client.ask(image, PROMPT, options=options)

def by_grpc(_):
    inputs = [
        grpc.InferInput("pixels", pixels.shape, "UINT8").set_data_from_numpy(pixels),
        grpc.InferInput("prompt", [1], "BYTES").set_data_from_numpy(text),
    ]
    grpc.InferenceServerClient(url).infer("instructblip_unary", inputs, parameters=options)

def post(path, body):
    urllib.request.urlopen(f"{http}/v2/models/{path}", json.dumps(body).encode()).read()

def by_http(_):
    image = {"name": "pixels", "datatype": "UINT8", "shape": pixels.shape, "data": numbers}
    prompt = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": [PROMPT]}
    post("instructblip_unary/infer", {"inputs": [image, prompt], "parameters": options})

def by_sse(_):
    post("instructblip/generate_stream", {"pixels": numbers, "prompt": PROMPT, **options})

def by_file(_):
    file = base64.b64encode(open(image, "rb").read()).decode()
    post("instructblip_unary/generate", {"image": file, "prompt": PROMPT, **options})

with ThreadPoolExecutor(12) as pool:
    list(pool.map(globals()[way], range(12)))
"""


def taken(server):
    """Slots and places in the queue that are not free."""
    with urllib.request.urlopen(server.metrics_url, timeout=LIMIT_S) as response:
        text = response.read().decode()
    names = ("iblip_slots_used", "iblip_requests_waiting")
    found = [re.search(rf"^{name}{{.*}} (\S+)", text, re.M) for name in names]
    return [float(one[1]) if one else -1.0 for one in found]  # none before the first look


def all_but_one_wait(server, count):
    """Whether so many requests have come, and the first has all slots."""
    used, waiting = taken(server)
    return used > 0 and waiting == count - 1


def wait_for(condition):
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def cancellation(model, key):
    request = ModelInferRequest(model_name=model)
    request.parameters["cancel"].string_param = key
    return request


def all_slots(served):
    return replace(served.long, n=served.manifest.limits.slots)


def asked(served, picture, model, key, length):
    """A request for a long answer."""
    pixels = pixels_from_image(picture, served.manifest.preprocessing)[None]
    options = GenerationOptions(min_new_tokens=length, max_new_tokens=length)
    request = infer_request(pixels, "What?", options, model=model, timeout_s=None, stream=True)
    request.parameters["cancel_key"].string_param = key
    return request


@pytest.mark.parametrize("model", ["instructblip", "instructblip_unary"])
def test_a_request_is_cancelled_by_its_key_alone(served, client, picture, model):
    keys = [f"{model} {number}" for number in range(3)]
    with grpc.insecure_channel(served.url) as channel, ThreadPoolExecutor(3) as pool:
        stub = Service(channel)

        def ask(request):
            if model == "instructblip_unary":
                return finish_of(stub.ModelInfer(request, timeout=LIMIT_S))
            responses = stub.ModelStreamInfer(request, timeout=LIMIT_S)
            return finish_of(list(responses)[-1].infer_response)

        busy = [client.stream(picture, "What?", options=all_slots(served)) for _ in range(2)]
        running = [pool.submit(ask, asked(served, picture, model, key, 5)) for key in keys]
        wait_for(lambda: all_but_one_wait(served.server, 5))
        counts = [ask(cancellation(model, key)) for key in (keys[1], "another", keys[1])]
        for stream in busy:
            stream.cancel()
        reasons = [one.result()["finish_reason"] for one in running]
    assert [one["cancelled"] for one in counts[:2]] == [1, 0]
    assert [reason == "cancelled" for reason in reasons] == [False, True, False]


def finish_of(response):
    (index,) = (number for number, one in enumerate(response.outputs) if one.name == "finish")
    return json.loads(response.raw_output_contents[index][4:])


def test_a_key_that_is_none_is_refused_and_ends_nobody(served, client, picture):
    with grpc.insecure_channel(served.url) as channel:
        stub = Service(channel)
        for value in (1.5, 2.0**70):
            request = asked(served, picture, "instructblip_unary", "", 3)
            request.parameters["cancel_key"].double_param = value
            with pytest.raises(grpc.RpcError, match="OptionError: cancel_key is ") as caught:
                stub.ModelInfer(request, timeout=LIMIT_S)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    time.sleep(0.5)  # in which Triton would be asked whether that caller is still there
    assert client.ask(picture, "What digit is it?", timeout=LIMIT_S).text


def test_callers_who_hang_up_at_once_are_noticed_too(served, client, picture):
    address = urlsplit(served.server.http_url)
    pixels = pixels_from_image(picture, served.manifest.preprocessing)[None]
    length = served.long.max_new_tokens
    image = {"name": "pixels", "datatype": "UINT8", "shape": pixels.shape}
    image["data"] = pixels.ravel().tolist()
    prompt = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["What?"]}
    options = {"min_new_tokens": length, "max_new_tokens": length, "n": 8, "temperature": 5.0}
    body = json.dumps({"inputs": [image, prompt], "parameters": options})
    for pause_s in (0.0, 0.002, 0.01, 0.02, 0.05) * 3:
        connection = http.client.HTTPConnection(address.netloc, timeout=LIMIT_S)
        connection.request("POST", "/v2/models/instructblip_unary/infer", body)
        time.sleep(pause_s)
        connection.close()
    wait_for(lambda: taken(served.server) == [0, 0])
    assert client.ask(picture, "What digit is it?", timeout=LIMIT_S).text


@pytest.mark.parametrize("way", ["by_client", "by_grpc", "by_http", "by_sse", "by_file"])
def test_a_killed_caller_frees_what_it_had(served, client, picture, way):
    server, length = served.server, served.long.max_new_tokens
    arguments = [picture, server.grpc_url, server.http_url, length, way]
    caller = subprocess.Popen([sys.executable, "-c", CALLER, *map(str, arguments)])
    try:
        wait_for(lambda: taken(server)[0] >= 8 and taken(server)[1] >= 8)
    finally:
        caller.kill()
        caller.wait()
    wait_for(lambda: taken(server) == [0, 0])
    assert client.ask(picture, "What digit is it?", timeout=LIMIT_S).text
