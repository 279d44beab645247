"""Requests that end Triton 2.51 itself: each gets an error, and the next caller an answer."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import socket
import zlib
from dataclasses import dataclass

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from iblip.export.images import pixels_from_image
from iblip.serving.client import Client
from iblip.serving.server.children import WALL, children_of, model_of
from tests.fixtures.serving import same, served_build

LIMIT_S = 60
PROMPT = "What digit is it?"
UNARY = "/v2/models/instructblip_unary"
JSON_ADDRESSES = [
    f"{UNARY}/infer",
    f"{UNARY}/versions/1/infer",
    f"{UNARY}/infer?a=b",
    f"{UNARY}/generate",
    "/v2/models/instructblip/generate_stream",
    "/v2/models/instructblip/trace/setting",
    "/v2/trace/setting",
    "/v2/logging",
    "/v2/repository/index",
    "/v2/repository/models/instructblip/load",
    "/v2/systemsharedmemory/region/a/register",
    "/v2/cudasharedmemory/region/a/register",
]
DEEP = 120_000
ARRAYS = b'{"inputs":' + b"[" * DEEP + b"]" * DEEP + b"}"
DEEP_JSON = (
    b'{"inputs":' + b"[" * DEEP,  # of which no bracket is closed
    b'{"a":' * DEEP,
    ARRAYS,
    b'{"inputs":' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"parameters":' + b'{"a":' * 500 + b"1" + b"}" * 501,
    b'{"a":[' * DEEP + b"]}" * DEEP,
    b'{"id":"]]\\"}","inputs":' + b"[" * DEEP,  # after brackets in a string
)


@dataclass(frozen=True)
class Caller:
    """Somebody who reaches the ports of a server, and has a picture."""

    http: str
    grpc: str
    pixels: np.ndarray

    def post(self, path, body, headers=None):
        """Status and text of the answer to a body; an iterable is sent in chunks."""
        connection = http.client.HTTPConnection(self.http, timeout=LIMIT_S)
        connection.request("POST", path, body, headers or {})
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response.status, text

    def send(self, *parts):
        """Status line and body of the answer to bytes as they are; nothing if it hangs up."""
        host, port = self.http.split(":")
        with socket.create_connection((host, int(port)), timeout=LIMIT_S) as connection:
            try:
                for part in parts:
                    connection.sendall(part)
                response = http.client.HTTPResponse(connection)
                response.begin()
                return f"HTTP/1.1 {response.status} ".encode() + response.read()
            except ConnectionError:
                return b""

    def body(self, pixels=None, prompt=None, **more):
        """JSON for the one-answer model; fields of inputs are changed, or left out by `None`."""
        first = {
            "name": "pixels",
            "datatype": "UINT8",
            "shape": list(self.pixels.shape),
            "data": self.pixels.ravel().tolist(),
        }
        second = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": [PROMPT]}
        inputs = [
            {name: value for name, value in (tensor | change).items() if value is not None}
            for tensor, change in ((first, pixels or {}), (second, prompt or {}))
        ]
        return json.dumps({"inputs": inputs, **more}).encode()

    def request(self, model, output, classification):
        """For gRPC, with one output as classes."""
        request = service_pb2.ModelInferRequest(model_name=model)
        request.inputs.add(name="pixels", datatype="UINT8", shape=self.pixels.shape)
        request.inputs.add(name="prompt", datatype="BYTES", shape=[1])
        prompt = PROMPT.encode()
        request.raw_input_contents.append(self.pixels.tobytes())
        request.raw_input_contents.append(len(prompt).to_bytes(4, "little") + prompt)
        wanted = request.outputs.add(name=output)
        wanted.parameters["classification"].int64_param = classification
        return request

    def unary(self, request):
        with grpc.insecure_channel(self.grpc) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            return stub.ModelInfer(request, timeout=LIMIT_S)

    def stream(self, request):
        """What the stream says is wrong."""
        with grpc.insecure_channel(self.grpc) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            responses = stub.ModelStreamInfer(iter([request]), timeout=LIMIT_S)
            return [response.error_message for response in responses]


@pytest.fixture(scope="module")
def standing(vicuna_build):
    """A server that nobody else asks."""
    with served_build(vicuna_build) as served:
        yield served


@pytest.fixture
def caller(standing, picture):
    pixels = pixels_from_image(picture, standing.manifest.preprocessing)[None]
    return Caller(standing.server.http_url.removeprefix("http://"), standing.url, pixels)


@pytest.fixture(scope="module")
def processes(standing):
    """Those of the server, as they were when it was ready."""
    return named_children(standing)


def named_children(served):
    children = {child: model_of(child) for child in children_of(served.server.pid)}
    return {child: name for child, name in children.items() if name}


@pytest.fixture(autouse=True)
def unharmed(standing, processes, caller, picture):
    """After each test: the same processes, and a right answer by gRPC and by HTTP."""
    assert WALL in processes.values()
    yield
    os.kill(standing.server.pid, 0)
    assert named_children(standing) == processes
    with Client(standing.url) as client:
        answer = client.ask(picture, PROMPT)
    same(answer, standing.in_process(picture, PROMPT))
    status, text = caller.post(f"{UNARY}/infer", caller.body(outputs=[{"name": "text"}]))
    assert (status, json.loads(text)["outputs"][0]["data"]) == (200, [answer.text])


TEXTS = [("instructblip_unary", "text"), ("instructblip_unary", "finish")]


@pytest.mark.parametrize(("model", "output"), TEXTS)
@pytest.mark.parametrize("count", [1, 5, 2**31])
def test_text_cannot_be_classified(caller, model, output, count):
    with pytest.raises(grpc.RpcError, match="unsupported type 'BYTES'") as caught:
        caller.unary(caller.request(model, output, count))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    for binary in (False, True):
        wanted = {"name": output, "parameters": {"classification": count, "binary_data": binary}}
        status, text = caller.post(f"/v2/models/{model}/infer", caller.body(outputs=[wanted]))
        assert status == 400
        assert "unsupported type 'BYTES'" in json.loads(text)["error"]


@pytest.mark.parametrize("output", ["text", "finish"])
def test_text_in_a_stream_cannot_be_classified(caller, output):
    errors = caller.stream(caller.request("instructblip", output, 1))
    assert errors
    assert all("unsupported type 'BYTES'" in error for error in errors)


def test_numbers_still_can(caller):
    request = caller.request("vision_encoder", "image_embeds", 1)
    del request.inputs[1], request.raw_input_contents[1]  # there is no prompt
    (tensor,) = caller.unary(request).outputs
    assert (tensor.datatype, tensor.name) == ("BYTES", "image_embeds")
    del request.outputs[0].parameters["classification"]
    (embeds,) = caller.unary(request).raw_output_contents
    wanted = {"name": "image_embeds", "parameters": {"classification": 1}}
    body = json.loads(caller.body(outputs=[wanted]))
    del body["inputs"][1]
    status, text = caller.post("/v2/models/vision_encoder/infer", json.dumps(body).encode())
    assert status == 200
    (found,) = json.loads(text)["outputs"][0]["data"]
    assert float(found.split(":")[0]) == pytest.approx(np.frombuffer(embeds, np.float32).max())


@pytest.mark.parametrize("path", JSON_ADDRESSES)
def test_deep_json_is_refused_wherever_it_is_sent(caller, path):
    for body in DEEP_JSON:
        status, text = caller.post(path, body)
        assert status == 400
        assert "nested" in json.loads(text)["error"]


@pytest.mark.parametrize("path", JSON_ADDRESSES)
def test_no_header_hides_deep_json(caller, path):
    """Only the one address that reads the header may leave what follows it unread."""
    body = b'{"a":1}' + ARRAYS
    status, text = caller.post(path, body, {"Inference-Header-Content-Length": "7"})
    assert status in (400, 500)
    takes_tensors = path.partition("?")[0].endswith("/infer")
    assert ("not JSON" in text) is not takes_tensors


@pytest.mark.parametrize(
    ("name", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_compressing_hides_nothing(caller, name, compress):
    headers = {"Content-Encoding": name}
    status, text = caller.post(f"{UNARY}/infer", compress(ARRAYS), headers)
    assert (status, "nested" in text) == (400, True)
    bomb = compress(bytes(65 << 20))
    assert len(bomb) < 100_000
    status, text = caller.post(f"{UNARY}/infer", bomb, headers)
    assert (status, "decompressed" in text) == (413, True)
    status, text = caller.post(f"{UNARY}/infer", compress(caller.body())[:-20], headers)
    assert (status, f"one whole stream of {name}" in text) == (400, True)
    status, text = caller.post(f"{UNARY}/infer", compress(caller.body()), headers)
    assert status == 200, text


@pytest.mark.parametrize("path", [f"{UNARY}/infer", "/v2/repository/index", "/metrics"])
def test_a_million_chunks_arrive_as_one_body(caller, path):
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    answer = caller.send(head, b"1\r\n \r\n" * 1_000_000, b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"not JSON" in answer


def test_chunks_are_no_fault(caller):
    body = caller.body(outputs=[{"name": "text"}])
    status, text = caller.post(f"{UNARY}/infer", (bytes([one]) for one in body))
    assert status == 200, text


SHAPES = [[1, 72, 72, 3 * 10**14], [1, 10**5, 10**5, 3], [2**40], [2**32, 2**32, 1, 3], [-(2**40)]]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_memory_is_taken_for_a_shape_that_nobody_sent(caller, shape):
    for change in ({"shape": shape, "data": [1]}, {"shape": shape, "datatype": "FP64"}):
        status, text = caller.post(f"{UNARY}/infer", caller.body(pixels=change))
        assert status == 400
        assert "more elements than the body has bytes" in text


def test_a_shape_of_a_region_that_is_not_there_takes_none_either(caller):
    region = {"shared_memory_region": "a", "shared_memory_byte_size": 5}
    change = {"shape": [1, 10**5, 10**5, 3], "data": None, "parameters": region}
    status, text = caller.post(f"{UNARY}/infer", caller.body(pixels=change))
    assert (status, "shared memory region: 'a'" in text) == (404, True)


def test_the_first_of_two_shapes_does_not_count_either(caller):
    body = caller.body().replace(b'"shape": [1,', b'"shape": [100000, 100000, 8], "shape": [1,', 1)
    status, text = caller.post(f"{UNARY}/infer", body)
    assert (status, "'shape' occurs twice" in text) == (400, True)


@pytest.mark.parametrize("size", [-1, 0, 4, 2**31, 2**32, 2**63, 2**64 - 1, 2**64, 1e300, "5"])
def test_sizes_of_binary_tensors_that_are_not_so(caller, size):
    prompt = {"parameters": {"binary_data_size": size}, "data": None}
    head = caller.body(prompt=prompt)
    for payload in (b"\x01\0\0\0a", b"\xff\xff\xff\xffa", b"\xff\xff\xff\x7fa"):
        headers = {"Inference-Header-Content-Length": str(len(head))}
        status, text = caller.post(f"{UNARY}/infer", head + payload, headers)
        assert status >= 400
        assert json.loads(text)["error"]


@pytest.mark.parametrize("value", ["-1", "", "a", "9" * 30, str(2**32), "1e3", "\u0661"])
def test_lengths_of_json_that_are_none(caller, value):
    head = f"POST {UNARY}/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n"
    head += f"Inference-Header-Content-Length: {value}\r\n\r\n{{}}"
    answer = caller.send(head.encode())
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"Inference-Header-Content-Length is" in answer


def test_a_body_above_the_limit_is_refused_before_it_is_sent(caller):
    head = f"POST {UNARY}/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {2**40}\r\n\r\n"
    assert b" 413 " in caller.send(head.encode())


def test_a_body_of_unknown_length_is_read_up_to_the_limit(caller):
    head = f"POST {UNARY}/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    megabyte = b"100000\r\n" + b" " * 2**20 + b"\r\n"
    answer = caller.send(head.encode(), *[megabyte] * 66)
    assert not answer or b" 413 " in answer


def test_headers_without_end_are_not_kept(caller):
    line = f"POST {UNARY}/infer HTTP/1.1\r\n".encode()
    for headers in (b"a: b\r\n" * 1_000_000, b"a: " + b"b" * 50_000_000):
        answer = caller.send(line, headers, b"\r\n\r\n")
        assert not answer or b" 400 " in answer


@pytest.mark.parametrize("body", [b"null", b"[]", b"1", b'"a"', b'{"a":\0', b"\xff\xfe{\0}\0", b""])
def test_json_that_is_no_request(caller, body):
    status, text = caller.post(f"{UNARY}/infer", body)
    assert status in (400, 500)
    assert json.loads(text)["error"]
