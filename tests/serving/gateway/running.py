"""A gateway on a port of its own, in a thread, in front of any server."""

from __future__ import annotations

import http.client
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import openai

from iblip.serving.client import AsyncClient, Timeout
from iblip.serving.gateway.app import app_of
from iblip.serving.gateway.listening import listening
from iblip.serving.gateway.options import GatewayOptions
from iblip.serving.gateway.running import server_of
from iblip.serving.gateway.servers import ServedModel, ServedModels
from iblip.serving.gateway.token_texts import TokenTexts
from iblip.serving.gateway.tracing import trace_headers

LIMIT_S = 60

PNG = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
"""One pixel."""


def messages(text="What?", *images):
    """A user's message about images; one pixel where none is given."""
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in images or (PNG,)]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


HTTP = openai.DefaultHttpxClient(verify=False)
"""Without reading the authorities of this machine, which takes longer than most tests."""


@dataclass
class Gateway:
    """A gateway that runs. `lines` is its access log."""

    port: int
    key: str = "none"
    lines: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @cached_property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=self.key, max_retries=0, http_client=HTTP)

    @cached_property
    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.url, api_key=self.key, max_retries=0)

    def ask(self, text="What?", *images, model="x", **options) -> Any:
        return self.client.chat.completions.create(
            model=model, messages=messages(text, *images), **options
        )

    def send(self, method, path, body=b"", **headers) -> tuple[int, dict[str, str], bytes]:
        """One request as it is: status, headers and body of the response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        data = json.dumps(body) if isinstance(body, dict | list) else body
        try:
            connection.request(method, path, data, names)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return response.status, found, response.read()
        finally:
            connection.close()

    def post(self, body, **headers) -> tuple[int, dict[str, str], bytes]:
        given = {"content_type": "application/json", **headers}
        return self.send("POST", "/v1/chat/completions", body, **given)

    def entry(self) -> dict[str, Any]:
        """The log's first line about a request for an answer: it comes after the answer."""
        end = time.monotonic() + LIMIT_S
        while True:
            entries = [json.loads(line) for line in self.lines]
            for entry in entries:
                if entry["path"].endswith("/chat/completions"):
                    return entry
            assert time.monotonic() < end, entries
            time.sleep(0.01)


@contextmanager
def gateway(
    url, *, name="x", others=(), timeout=None, tokens=None, callers=None, key="none", **options
):
    """Runs a gateway in front of the server at an address; `others` are more, by name."""
    timeout = timeout or Timeout(connect=0.5, total=60)
    tokens = tokens or TokenTexts()
    models = [
        ServedModel(
            name=name,
            client=AsyncClient(url, timeout=timeout, retries=0, metadata=trace_headers),
            tokens=tokens,
        )
        for name, url in {name: url, **dict(others)}.items()
    ]
    lines: list[str] = []
    app = app_of(ServedModels(models), GatewayOptions(**options), callers, lines.append)
    server, one = server_of(app), listening("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [one]})
    thread.start()
    try:
        yield Gateway(one.getsockname()[1], key, lines)
    finally:
        server.should_exit = server.force_exit = True
        thread.join()
        one.close()
