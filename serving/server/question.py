"""The canary's question: a black image and a prompt, through the whole chain of models.

Over gRPC, like callers. A server with TLS is asked over HTTP, which stays on this machine: it has a
certificate of a name that is not this machine's, and may want one that only callers have. Of its
gRPC service a TLS handshake then shows that it is there.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import struct
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from iblip.export.errors import DeadlineError, EngineError
from iblip.serving.client import Client, GenerationOptions, UnreachableError
from iblip.serving.server.server import TritonServer
from iblip.serving.wire.contract import ServerContract
from iblip.serving.wire.errors import error_from_text
from iblip.serving.wire.names import MODEL, PIXELS, PROMPT, TOKEN, UNARY

PROMPT_TEXT = "What is in the image?"
BLACK = np.zeros((32, 32, 3), np.uint8)
ONE_TOKEN = GenerationOptions(max_new_tokens=1)

LENGTH_HEADER = "Inference-Header-Content-Length"
"""How many bytes of a body are JSON; the tensors follow, as bytes."""


def canary_question(server: TritonServer) -> Callable[[float], object]:
    """What asks a server, given seconds for the answer; raises as `Client.ask` does."""
    return _HttpQuestion(server) if server.options.tls else _GrpcQuestion(server)


class _GrpcQuestion:
    def __init__(self, server: TritonServer) -> None:
        self._url, self._token = server.grpc_url, server.options.token

    def __call__(self, timeout_s: float) -> None:
        with Client(self._url, timeout=timeout_s, retries=0, token=self._token) as client:
            client.ask(BLACK, PROMPT_TEXT, options=ONE_TOKEN)


class _HttpQuestion:
    def __init__(self, server: TritonServer) -> None:
        self._grpc, self._http = _place(f"//{server.grpc_url}"), _place(server.http_url)
        token = server.options.token
        self._headers = {TOKEN: token} if token else {}
        self._contract: ServerContract | None = None

    def __call__(self, timeout_s: float) -> None:
        try:
            _shake_hands(self._grpc, timeout_s)
            if self._contract is None:
                config = self._ask(f"{MODEL}/config", timeout_s)
                parameters = config["parameters"].items()
                strings = {name: value["string_value"] for name, value in parameters}
                self._contract = ServerContract.from_parameters(strings)
            body, length = _unary_request(self._contract, timeout_s)
            headers = {LENGTH_HEADER: str(length)}
            self._ask(f"{UNARY}/infer", timeout_s, body=body, headers=headers)
        except TimeoutError as error:
            raise DeadlineError("the answer was not finished by its deadline") from error
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(f"its HTTP or gRPC service does not answer: {error}") from error

    def _ask(
        self,
        path: str,
        timeout_s: float,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        connection = http.client.HTTPConnection(*self._http, timeout=timeout_s)
        try:
            method = "GET" if body is None else "POST"
            sent = {**self._headers, **(headers or {})}
            connection.request(method, f"/v2/models/{path}", body, sent)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if response.status != HTTPStatus.OK:
            text = content.decode(errors="replace")
            raise error_from_text(text) or EngineError(f"HTTP status {response.status}: {text}")
        # The tensors of an answer follow its JSON; nobody reads them.
        length = response.getheader(LENGTH_HEADER)
        return json.loads(content[: int(length)] if length else content)


def _unary_request(contract: ServerContract, timeout_s: float) -> tuple[bytes, int]:
    """The body of a request, and how much of it is JSON."""
    size = contract.preprocessing
    pixels = bytes(size.height * size.width * 3)
    text = PROMPT_TEXT.encode()
    prompt = struct.pack("<I", len(text)) + text
    shapes = {PIXELS: ("UINT8", [1, size.height, size.width, 3], pixels)}
    shapes[PROMPT] = ("BYTES", [1], prompt)
    request = {
        "inputs": [
            {
                "name": name,
                "datatype": datatype,
                "shape": shape,
                "parameters": {"binary_data_size": len(data)},
            }
            for name, (datatype, shape, data) in shapes.items()
        ],
        "parameters": {"timeout": int(timeout_s * 1e6), **ONE_TOKEN.to_mapping()},
    }
    header = json.dumps(request).encode()
    return header + pixels + prompt, len(header)


def _shake_hands(place: tuple[str, int], timeout_s: float) -> None:
    """A TLS handshake with whoever listens, whatever its certificate says."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(place, timeout_s) as connection,
        context.wrap_socket(connection),
    ):
        pass


def _place(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    return parts.hostname, parts.port
