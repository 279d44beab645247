"""What the gateway adds to an answer, and what it holds while a thousand streams wait."""

from __future__ import annotations

import base64
import http.client
import json
import os
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai

from benchmarks.builds import build
from benchmarks.measure import in_turns
from benchmarks.served import BUSY, engine_metrics, serve
from benchmarks.way import SHORT
from iblip.export.examples import Example, read_examples
from iblip.serving.client import Client
from iblip.serving.client.patience import ONE_ATTEMPT
from iblip.serving.gateway.process import GatewayProcess
from iblip.serving.server.server import TritonServer

ROUNDS = 60
STREAMS = 1000
MODEL = "demo"
PATH = "/v1/chat/completions"
LIMIT_S = 300.0


def main(checkpoint: Path, scratch: Path) -> dict[str, Any]:
    """Both, on one server; the same image and question each round, every way."""
    examples = [
        e for e in read_examples(checkpoint / "examples") if e.answer and len(e.answer) <= SHORT
    ]
    directory = build(checkpoint, scratch)
    with (
        serve(directory, queue=STREAMS + 100) as server,
        GatewayProcess("127.0.0.1", 0, print) as gateway,
    ):
        gateway.start([f"{MODEL}={server.grpc_url}", f"--max-open={STREAMS + 100}"])
        ways = dict(_ways(server, gateway.url, examples))
        in_turns(ways, 2, warm_up=1)
        assert gateway.pid is not None
        before_s = _seconds(gateway.pid)
        overhead = in_turns(ways, ROUNDS, warm_up=0)
        used_s = _seconds(gateway.pid) - before_s
        return {
            "overhead": overhead,
            "gateway_cpu_ms": round(used_s / ROUNDS / (len(ways) - 1) * 1e3, 2),
            "idle_mib": round(_memory(gateway.pid, "VmRSS"), 1),
            **_waiting(server, gateway.url, gateway.pid, examples[0]),
        }


def _body(example: Example, **parameters: Any) -> bytes:
    image = base64.b64encode(example.image.read_bytes()).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/webp;base64,{image}"}},
        {"type": "text", "text": example.prompt},
    ]
    messages = [{"role": "user", "content": parts}]
    return json.dumps({"model": MODEL, "messages": messages, **parameters}).encode()


def _post(connection: http.client.HTTPConnection, body: bytes) -> bytes:
    connection.request("POST", PATH, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    data = response.read()
    assert response.status == 200, data
    return data


def _ways(
    server: TritonServer, url: str, examples: list[Example]
) -> Iterator[tuple[str, Callable[[int], Any]]]:
    """Each has one connection, which stays open."""
    client = Client(server.grpc_url, timeout=ONE_ATTEMPT, retries=0)
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=LIMIT_S)
    api = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    yield (
        "Client.ask",
        lambda turn: client.ask(examples[turn].image.read_bytes(), examples[turn].prompt),
    )
    yield "gateway, HTTP", lambda turn: _post(connection, _body(examples[turn]))
    yield (
        "gateway, OpenAI's client",
        lambda turn: api.chat.completions.create(**json.loads(_body(examples[turn]))),
    )


def _waiting(server: TritonServer, url: str, pid: int, example: Example) -> dict[str, Any]:
    """Opens all streams behind answers that take every slot, then closes them at once."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    long = {"min_new_tokens": 900, "max_tokens": 900, "temperature": 5.0, "stream": True}
    body = _body(example, **long)
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    parts = urlsplit(url)
    with ExitStack() as opened:
        for _ in range(STREAMS):
            one = opened.enter_context(socket.create_connection((parts.hostname, parts.port)))
            one.sendall(request)
        end, waiting = time.monotonic() + LIMIT_S, 0.0
        while waiting < STREAMS - 50 and time.monotonic() < end:
            time.sleep(0.5)
            waiting = max(waiting, engine_metrics(server)["iblip_requests_waiting"])
        figures = {
            "streams": STREAMS,
            "waiting": int(waiting),
            "waiting_mib": round(_memory(pid, "VmRSS"), 1),
            "peak_mib": round(_memory(pid, "VmHWM"), 1),
        }
    closed = time.monotonic()
    while any(engine_metrics(server)[name] for name in BUSY):
        time.sleep(0.05)
    return {**figures, "forgotten_s": round(time.monotonic() - closed, 2)}


def _memory(pid: int, name: str) -> float:
    """MiB of a process, as /proc says it."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition(f"{name}:")[2].split()[0]) / 1024


def _seconds(pid: int) -> float:
    """Seconds of a processor that a process has used, as /proc says it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
