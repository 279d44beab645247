"""What a client takes as an address, and the proxies of the environment."""

from __future__ import annotations

import asyncio
import http.server
import pickle
import threading

import pytest

from iblip.serving.client import AsyncClient, Client, OptionError, Timeout, UnknownHostError
from iblip.serving.client.address import NO_PROXIES, PROXIES, Address
from iblip.serving.client.errors import UnreachableError
from iblip.serving.client.patience import ONE_ATTEMPT

QUESTION = (b"", "What?")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in (*PROXIES, *NO_PROXIES):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("127.0.0.1:8001", "127.0.0.1:8001"),
        ("grpc://gpu-7.example:8001/", "gpu-7.example:8001"),
        ("[::1]:8001", "[::1]:8001"),
        (" localhost:1 ", "localhost:1"),
        ("127.0.0.1", "127.0.0.1:8001"),
        ("gpu-7.example", "gpu-7.example:8001"),
        ("grpc://localhost", "localhost:8001"),
        ("[::1]", "[::1]:8001"),
    ],
)
def test_an_address_is_a_host_and_a_port(url, target):
    assert Address.parse(url).target == target


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:8001", r"Leave out http://, and give the port of gRPC"),
        ("https://host", r"Leave out https://"),
        ("127.0.0.1:", r"expected host:port .* such as 127\.0\.0\.1:8001"),
        ("::1:8001", "expected host:port"),
        ("host:0", "expected host:port"),
        ("host:65536", "expected host:port"),
        ("a b:1", "expected host:port"),
        ("", "expected host:port"),
        (8001, "url is 8001; expected host:port"),
        ("x" * 10_000_000, "expected host:port"),
    ],
)
@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_anything_else_is_refused_when_the_client_is_made(client, url, message):
    with pytest.raises(OptionError, match=message) as caught:
        client(url)
    assert len(str(caught.value)) < 500


def test_a_host_without_an_address_is_said_at_once():
    with (
        Client("nosuch.invalid:8001", timeout=60) as client,
        pytest.raises(UnknownHostError, match=r"host of nosuch\.invalid:8001 cannot be found"),
    ):
        client.ask(*QUESTION)


@pytest.mark.parametrize("url", ["127.0.0.1:8001", "127.9.9.9:1", "localhost:1", "[::1]:1"])
def test_no_proxy_is_on_the_way_to_this_machine(monkeypatch, url):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert Address.parse(url).proxy_variable is None


@pytest.mark.parametrize("variable", NO_PROXIES)
@pytest.mark.parametrize(
    ("hosts", "left_out"),
    [
        ("10.1.2.3", True),
        ("example.org, 10.0.0.0/8", True),
        ("*", True),
        ("", False),
        ("10.1.2.30,.2.3.4", False),
    ],
)
def test_hosts_are_left_out_of_the_proxy(monkeypatch, variable, hosts, left_out):
    monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv(variable, hosts)
    assert (Address.parse("10.1.2.3:1").proxy_variable is None) is left_out


def test_a_domain_is_left_out_of_the_proxy_with_its_hosts(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", ".Example.org")
    assert Address.parse("gpu.example.org:1").proxy_variable is None
    assert Address.parse("notexample.org:1").proxy_variable == "https_proxy"


def test_a_proxy_that_does_not_answer_is_named_without_its_password(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:9")
    with (
        Client("10.1.2.3:8001") as client,
        pytest.raises(UnreachableError, match=r"through the proxy 127\.0\.0\.1:9 \(http_proxy; NO"),
    ):
        client.contract()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_client_can_be_pickled(kind):
    copy = pickle.loads(pickle.dumps(kind("host:1", timeout=3, model="m")))
    assert (copy.url, copy.timeout, copy.model) == ("host:1", Timeout(connect=3, total=3), "m")
    assert repr(copy) == f"<{kind.__name__} of host:1>"


class HangsUp(http.server.BaseHTTPRequestHandler):
    """As Triton's HTTP service does; Python's own says in HTTP/1 that it does not know HTTP/2."""

    def handle(self):
        self.rfile.read(24)  # the preface of HTTP/2


@pytest.mark.parametrize("handler", [HangsUp, http.server.BaseHTTPRequestHandler])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_the_port_of_http_is_said(kind, handler):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = kind(f"127.0.0.1:{server.server_port}", timeout=ONE_ATTEMPT, retries=0)

    async def contract():
        return await client.contract()

    try:
        with pytest.raises(UnreachableError, match=r"An HTTP service does.*port of gRPC"):
            client.contract() if kind is Client else asyncio.run(contract())
    finally:
        server.shutdown()
        server.server_close()
