"""Callers that a server must survive: those that send rubbish, vanish, or do not read.

    python -m benchmarks.hostile URL    streams long answers; somebody kills or stops it meanwhile

Each request of `HOSTILE` may get any answer or none; what counts is what becomes of the others.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import grpc  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

from benchmarks.server_process import ROOT
from iblip.engines.language_model.options import GenerationOptions
from iblip.export.artifact.manifest import Manifest
from iblip.serving.client import Client
from iblip.serving.client.messages import KeepAlive, channel_options, infer_request
from iblip.serving.client.patience import ONE_ATTEMPT
from iblip.serving.client.protocol import ModelInferRequest, Service
from iblip.serving.repository.model_config import DATA_TYPES
from iblip.serving.wire.names import UNARY

TIMEOUT_S = 20.0

STREAMS = 8
UNWANTED = {"temperature": 5.0, "n": 4, "seed": 1, "logprobs": 20}
"""Options of a caller who will not take the answer, which is as long as the model's can be."""

Message = Any
"""One of Triton's protobuf messages, which have no types to check against."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """The server that is attacked.

    Attributes:
        urls: `grpc`, `host:port`, and `http`.
        manifest: of its build.
        pixels: of an image, uint8 `[1, height, width, 3]`.
    """

    urls: Mapping[str, str]
    manifest: Manifest
    pixels: npt.NDArray[np.uint8]

    def question(self, prompt: str = "What is it?", **options: Any) -> Message:
        """A question for the one-answer model."""
        return infer_request(
            self.pixels,
            prompt,
            GenerationOptions(**options),
            model=UNARY,
            timeout_s=TIMEOUT_S,
            stream=False,
        )

    def step(self, component: str, *, batch: int, token: int = 5) -> Message:
        """A request to a step whose shapes say `batch`, with the data of one row."""
        message = ModelInferRequest(model_name=component)
        for spec in self.manifest.components[component].graphs["model"].contract.inputs:
            sizes = [axis if isinstance(axis, int) else 16 for axis in spec.axes[1:]]
            data_type = DATA_TYPES[spec.dtype].removeprefix("TYPE_")
            message.inputs.add(name=spec.name, datatype=data_type, shape=[batch, *sizes])
            array = np.full(sizes, token, spec.numpy_dtype)
            message.raw_input_contents.append(array.tobytes())
        return message

    def send(self, message: Message) -> None:
        """Sends a request over gRPC, and forgets its answer."""
        with grpc.insecure_channel(
            self.urls["grpc"], options=channel_options(KeepAlive())
        ) as channel:
            stub = Service(channel)
            stub.ModelInfer(message, timeout=TIMEOUT_S)

    def post(self, body: bytes | Iterator[bytes]) -> None:
        """Sends a body to the one-answer model over HTTP, and forgets its answer."""
        with contextlib.closing(
            http.client.HTTPConnection(self._http(), timeout=TIMEOUT_S)
        ) as connection:
            chunked = not isinstance(body, bytes)
            path, headers = f"/v2/models/{UNARY}/infer", {"Content-Type": "application/json"}
            connection.request("POST", path, body, headers, encode_chunked=chunked)
            connection.getresponse().read()

    def garbage(self, seed: int) -> None:
        """Sends what is no protocol to both ports."""
        for address in (self.urls["grpc"], self._http()):
            host, _, port = address.rpartition(":")
            with socket.create_connection((host.strip("[]"), int(port)), TIMEOUT_S) as connection:
                connection.sendall(random.Random(seed).randbytes(100_000))

    def _http(self) -> str:
        return urlsplit(self.urls["http"]).netloc


def _classified(target: Target, *, over_http: bool) -> None:
    if not over_http:
        message = target.question()
        message.outputs.add(name="text").parameters["classification"].int64_param = 1
        target.send(message)
        return
    body = http_question(target.pixels, "What is it?")
    body["outputs"] = [{"name": "text", "parameters": {"classification": 1}}]
    target.post(json.dumps(body).encode())


def http_question(pixels: npt.NDArray[np.uint8], prompt: str) -> dict[str, Any]:
    """The body that asks the one-answer model over HTTP; pixels `[images, height, width, 3]`."""
    return {
        "inputs": [
            {
                "name": "pixels",
                "datatype": "UINT8",
                "shape": list(pixels.shape),
                "data": pixels.ravel().tolist(),
            },
            {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": [prompt]},
        ]
    }


def _parameter(target: Target, name: str, value: str) -> None:
    message = target.question()
    message.parameters[name].string_param = value
    target.send(message)


HOSTILE: Mapping[str, Callable[[Target], None]] = {
    "classification": lambda target: _classified(target, over_http=False),
    "classification over HTTP": lambda target: _classified(target, over_http=True),
    "deep JSON": lambda target: target.post(b'{"inputs":' + b"[" * 120_000),
    "a million chunks": lambda target: target.post(iter([b"["] * 1_000_000)),
    "a prompt of 10 MB": lambda target: target.send(target.question("a digit " * 1_250_000)),
    "deep JSON in an option": lambda target: _parameter(target, "stop", "[" * 100_000),
    "a number of 5,000 digits": lambda target: _parameter(target, "logit_bias", "9" * 5000),
    "a million stop tokens": lambda target: _parameter(
        target, "stop_token_ids", json.dumps([5] * 1_000_000)
    ),
    "eight answers with logprobs": lambda target: target.send(
        target.question(n=8, temperature=1.0, logprobs=100, min_new_tokens=500, max_new_tokens=500)
    ),
    "an empty batch of pictures": lambda target: target.send(
        target.step("vision_encoder", batch=0)
    ),
    "an empty batch of instructions": lambda target: target.send(target.step("qformer", batch=0)),
    "a token that is none": lambda target: target.send(
        target.step("qformer", batch=1, token=99999)
    ),
    "no protocol": lambda target: target.garbage(1),
}


def send_hostile(target: Target) -> dict[str, str]:
    """Sends every hostile request, all at once; what became of each, in a word."""

    def attempt(attack: Callable[[Target], None]) -> str:
        try:
            attack(target)
        except grpc.RpcError as error:
            return str(error.code().name)
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__
        return "answered"

    with ThreadPoolExecutor(len(HOSTILE)) as pool:
        return dict(zip(HOSTILE, pool.map(attempt, HOSTILE.values()), strict=True))


@contextlib.contextmanager
def careless_caller(url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that reads long answers, once it does; killed in mid-stream on leaving."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.hostile", url], stdout=subprocess.PIPE, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def vanish(url: str) -> None:
    """Kills a caller in mid-stream."""
    with careless_caller(url):
        pass


def stop_reading(url: str, seconds: float) -> None:
    """Has a caller that reads nothing for a while, and then vanishes."""
    with careless_caller(url) as process:
        process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)


def main() -> None:
    """Asks for long answers at once, and says when the first begins."""
    (url,) = sys.argv[1:]
    with Client(url, timeout=ONE_ATTEMPT, retries=0) as client:
        side, limits = client.contract().preprocessing, client.contract().limits
        image = np.zeros((side.height, side.width, 3), np.uint8)
        length = (limits.max_length - limits.num_query_tokens) * 9 // 10  # the prompt has the rest
        options = {**UNWANTED, "min_new_tokens": length, "max_new_tokens": length}
        streams = [client.stream(image, "What is it?", options=options) for _ in range(STREAMS)]
        next(streams[0])
        print("begun", flush=True)
        with ThreadPoolExecutor(STREAMS) as pool:
            list(pool.map(list, streams))


if __name__ == "__main__":
    main()
