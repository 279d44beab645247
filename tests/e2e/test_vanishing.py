"""Callers that are killed in the middle of their answers: their places are free at once."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.request

import pytest

LIMIT_S = 30

CALLER = """
import json, sys, urllib.request
from concurrent.futures import ThreadPoolExecutor

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

with ThreadPoolExecutor(12) as pool:
    list(pool.map(globals()[way], range(12)))
"""


def taken(server):
    """Slots and places in the queue that are not free."""
    with urllib.request.urlopen(server.metrics_url, timeout=LIMIT_S) as response:
        text = response.read().decode()
    names = ("iblip_slots_used", "iblip_requests_waiting")
    return [float(re.search(rf"^{name}{{.*}} (\S+)", text, re.M)[1]) for name in names]


def wait_for(condition):
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("way", ["by_client", "by_grpc", "by_http", "by_sse"])
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
    assert client.ask(picture, "What digit is it?", timeout_s=LIMIT_S).text
