"""What a gateway refuses before any server is asked, in OpenAI's form."""

from __future__ import annotations

import json
import socket
from contextlib import suppress

import openai
import pytest

from tests.serving.gateway.running import PNG, gateway, messages


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("/etc/passwd", "neither a data: nor an https: address"),
        ("file:///etc/passwd", "neither a data: nor an https: address"),
        ("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAA", "neither a data:"),
        ("DATA:image/png;base64,AAAA", "neither a data:"),
        ("https://example.org/a.png", "--allow-image-host"),
        ("http://example.org/a.png", "--allow-image-host"),
        ("data:image/png;base64,AAAA", "not an image"),
        ("data:image/png;base64", "has no comma"),
        ("data:image/png;base64,%%%", "not base64"),
    ],
)
def test_what_is_no_image_of_the_request_is_refused(server, running, address, words):
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        running.ask("What?", address)
    assert refused.value.param == "messages"
    assert server.requests == []


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("https://other.org/a.png", "not of an allowed host"),
        ("http://localhost/a.png", "is not allowed"),
        ("https://localhost/a.png", "which is not public"),
    ],
)
def test_only_public_addresses_of_allowed_hosts_are_fetched(server, address, words):
    with (
        gateway(server.url, image_hosts=("localhost",)) as running,
        pytest.raises(openai.BadRequestError, match=words),
    ):
        running.ask("What?", address)


def test_more_images_than_the_server_takes(running):
    with pytest.raises(openai.BadRequestError, match="5 images; expected 1 to 4"):
        running.ask("What?", *[PNG] * 5)
    with pytest.raises(openai.BadRequestError, match="0 images"):
        running.client.chat.completions.create(
            model="x", messages=[{"role": "user", "content": "What?"}]
        )


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (b"", {}, 400, "not JSON"),
        (b"[]", {}, 400, "a list; expected an object"),
        (b"[" * 90_000, {}, 400, "nested too deeply"),
        (b"[" * 200_000, {}, 400, "arrays and objects"),
        (b'{"model": "\xff"}', {}, 400, "not JSON"),
        (b"9" * 5000, {}, 400, "not JSON"),
        ({"model": "y", "messages": messages()}, {}, 404, "there is no model 'y'"),
        ({"model": "x", "messages": []}, {}, 400, "an empty list"),
        ({"model": "x", "messages": messages("\ud800")}, {}, 400, "Unicode"),
        ({"model": "x", "messages": messages(), "\ud800": 1}, {}, 400, "there is no parameter"),
        (b"{}", {"content_type": "text/plain"}, 415, "expected application/json"),
        (b"{}", {"content_encoding": "gzip"}, 415, "compressed"),
        (b" " * (1 << 20) + b"{}", {}, 413, "more than 1048576 bytes"),
        (b"{}", {"content_length": "99999999"}, 413, "more than 1048576 bytes"),
    ],
)
def test_hostile_bodies_are_refused_in_openais_form(server, body, headers, status, words):
    with gateway(server.url, max_body_mib=1) as running:
        found, _, text = running.post(body, **headers)
        error = json.loads(text)["error"]
        assert (found, words in error["message"]) == (status, True), error
        assert error["type"] == "invalid_request_error"
        assert running.ask().choices[0].message.content == "yes"
        assert server.requests[1:] == []


def test_a_body_in_chunks_is_limited_while_it_is_read(server):
    with (
        gateway(server.url, max_body_mib=1) as running,
        socket.create_connection(("127.0.0.1", running.port)) as caller,
    ):
        caller.settimeout(30)
        caller.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        with suppress(OSError):
            for _ in range(200):  # 13 MB, of which a little more than 1 is held, and 5 are read
                caller.sendall(chunk)
        assert running.entry()["status"] == 413
        assert running.entry()["request_bytes"] < 2 << 20


def test_unknown_paths_and_methods_have_openais_form(running):
    for method, path, status in (
        ("GET", "/v1/embeddings", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/%00", 404),
    ):
        found, _, body = running.send(method, path)
        assert (found, json.loads(body)["error"]["type"]) == (status, "invalid_request_error")
    assert "/v1/models" in json.loads(running.send("GET", "/")[2])["paths"]


def test_pages_of_other_origins_may_ask_only_where_it_is_allowed(server, running):
    preflight = {"origin": "https://a.example", "access_control_request_method": "POST"}
    path = "/v1/chat/completions"
    assert running.send("OPTIONS", path, **preflight)[0] == 405
    with gateway(server.url, cors_origins=("https://a.example",)) as allowed:
        status, headers, _ = allowed.send("OPTIONS", path, **preflight)
        assert (status, headers["access-control-allow-origin"]) == (200, "https://a.example")
        other = {**preflight, "origin": "https://b.example"}
        assert allowed.send("OPTIONS", path, **other)[0] == 400
