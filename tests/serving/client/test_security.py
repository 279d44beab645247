"""What clients say when server and client do not agree on TLS or a token; no Triton is needed."""

from __future__ import annotations

import asyncio
import pickle
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from iblip.export.errors import OptionError
from iblip.serving.client import (
    TLS,
    AsyncClient,
    Client,
    NoTLSError,
    NotServedError,
    RefusedError,
    UnreachableError,
    UntrustedError,
)
from iblip.serving.client.patience import ONE_ATTEMPT
from iblip.serving.wire.names import GRPC_TOKEN

TOKEN = "0123456789abcdef"


class Triton(grpc.GenericRpcHandler):
    """Says of every model that it is unknown, if the token is right."""

    def service(self, details):
        token = dict(details.invocation_metadata).get(GRPC_TOKEN)

        def answer(request, context):
            if token != TOKEN:
                text = f"This protocol is restricted, expecting header '{GRPC_TOKEN}'"
                context.abort(grpc.StatusCode.UNAVAILABLE, text)
            context.abort(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'instructblip'")

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture(scope="module")
def servers(certificates):
    """Addresses of a server in plain text, with TLS, mutual TLS, and a name of its own."""

    def read(name):
        return (certificates / name).read_bytes()

    def credentials(name, *mutual):
        pair = (read(f"{name}.key"), read(f"{name}.pem"))
        return grpc.ssl_server_credentials([pair], *mutual)

    kinds = {
        "plain": None,
        "tls": credentials("local"),
        "mutual": credentials("local", read("ca.pem"), True),
        "named": credentials("named"),
    }
    running, urls = [], {}
    for name, secure in kinds.items():
        server = grpc.server(ThreadPoolExecutor(2), handlers=[Triton()])
        port = (
            server.add_secure_port("127.0.0.1:0", secure)
            if secure
            else server.add_insecure_port("127.0.0.1:0")
        )
        server.start()
        running.append(server)
        urls[name] = f"127.0.0.1:{port}"
    yield urls
    for server in running:
        server.stop(None).wait()


def cases(certificates):
    ca = certificates / "ca.pem"

    def pair(name):
        return {
            "certificate": certificates / f"{name}.pem",
            "key": certificates / f"{name}.key",
        }

    return {
        "none": None,
        "default": True,
        "ca": TLS(authorities=ca),
        "other": TLS(authorities=certificates / "other.pem"),
        "client": TLS(authorities=ca, **pair("client")),
        "stranger": TLS(authorities=ca, **pair("stranger")),
        "name": TLS(authorities=ca, server_name="triton.example"),
    }


CLOSES = "closes every connection before anything is said. .*--tls-ca.*--tls-cert"


@pytest.mark.parametrize(
    ("server", "tls", "token", "error", "message"),
    [
        ("plain", "none", TOKEN, NotServedError, "unknown model"),
        ("tls", "ca", TOKEN, NotServedError, "unknown model"),
        ("mutual", "client", TOKEN, NotServedError, "unknown model"),
        ("named", "name", TOKEN, NotServedError, "unknown model"),
        ("tls", "none", TOKEN, UnreachableError, CLOSES),
        ("mutual", "none", TOKEN, UnreachableError, CLOSES),
        ("mutual", "ca", TOKEN, UnreachableError, CLOSES),
        ("mutual", "stranger", TOKEN, UnreachableError, CLOSES),
        ("plain", "ca", TOKEN, NoTLSError, r"does not speak TLS\. Leave out tls="),
        ("tls", "other", TOKEN, UntrustedError, r"not trusted \(.*certificate.*\)\. Give its"),
        ("tls", "default", TOKEN, UntrustedError, "not trusted"),
        ("named", "ca", TOKEN, UntrustedError, "Hostname Verification .*server_name"),
        ("tls", "ca", None, RefusedError, "wants a token: another, or one at all"),
        ("plain", "none", "f" * 16, RefusedError, "wants a token: another, or one at all"),
    ],
)
def test_a_client_says_what_server_and_client_do_not_agree_on(
    servers, certificates, server, tls, token, error, message
):
    settings = {"tls": cases(certificates)[tls], "token": token, "timeout": ONE_ATTEMPT}
    with Client(servers[server], **settings) as client:
        with pytest.raises(error, match=message):
            client.contract()
        with pickle.loads(pickle.dumps(client)) as copy, pytest.raises(error, match=message):
            copy.contract()

    async def ask():
        async with AsyncClient(servers[server], **settings) as client:
            await client.contract()

    with pytest.raises(error, match=message):
        asyncio.run(ask())


def test_other_metadata_travels_too(servers):
    with (
        Client(servers["plain"], metadata={GRPC_TOKEN: TOKEN, "x-tenant": "a"}) as client,
        pytest.raises(NotServedError),
    ):
        client.contract()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tls": "ca.pem"}, r"tls is 'ca.pem'; expected True, or TLS"),
        ({"token": "short"}, "the token has 5 characters"),
        ({"metadata": 5}, "metadata is 5; expected a mapping of names to texts"),
        ({"metadata": {"X-Tenant": "a"}}, "has the name 'X-Tenant'; expected a-z"),
        ({"metadata": {"x-bin": "a"}}, "has the name 'x-bin'"),
        ({"metadata": {"x": "a\r\nb"}}, "'x' has a value that is not printable"),
    ],
)
def test_what_cannot_travel_is_refused_when_the_client_is_made(settings, message):
    with pytest.raises(OptionError, match=message):
        Client("127.0.0.1:1", **settings)
