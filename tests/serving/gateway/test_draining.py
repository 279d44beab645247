"""Bodies that are refused before they were read: who sends one still learns why."""

from __future__ import annotations

import socket
import time

import pytest

from tests.serving.client.scripted import Server
from tests.serving.gateway.running import gateway


@pytest.fixture
def server():
    with Server() as server:
        yield server


@pytest.mark.parametrize(
    ("size", "path", "headers", "status"),
    [
        (3 << 20, "/v1/chat/completions", b"Content-Type: application/json", 413),
        (3 << 20, "/v1/chat/completions", b"Content-Type: text/plain", 415),
        (3 << 20, "/v1/nowhere", b"Content-Type: application/json", 404),
    ],
)
def test_who_is_still_sending_reads_why_it_is_refused(server, size, path, headers, status):
    start = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n\r\n"
    with gateway(server.url, max_body_mib=1) as running:
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", running.port)) as caller:
                caller.settimeout(30)
                caller.sendall(start % (path.encode(), size, headers))
                for _ in range(size >> 16):
                    caller.sendall(b" " * 0x10000)
                    time.sleep(0.001)
                assert caller.recv(64).startswith(b"HTTP/1.1 %d " % status)


def test_who_waits_before_it_sends_is_refused_at_once(server):
    with (
        gateway(server.url, max_body_mib=1) as running,
        socket.create_connection(("127.0.0.1", running.port)) as caller,
    ):
        caller.settimeout(30)
        caller.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Expect: 100-continue\r\nContent-Length: 2000000\r\n\r\n"
        )
        assert caller.recv(64).startswith(b"HTTP/1.1 413 ")
