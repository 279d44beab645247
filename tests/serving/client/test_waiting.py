"""How long clients wait for a server, and what ends the wait."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from iblip.export.errors import IblipError
from iblip.serving.client import (
    AsyncClient,
    CancelledError,
    Client,
    NotReadyError,
    Retries,
    Timeout,
    UnknownHostError,
    UnreachableError,
)
from iblip.serving.client.patience import ONE_ATTEMPT
from tests.ports import closed_port
from tests.serving.client.asking import IMAGE, both
from tests.serving.client.scripted import FULL, Server, hang, say


@contextmanager
def beginning_in(seconds, server):
    """Starts a server after so long, from a thread, and stops it at the end of the block."""
    timer = threading.Timer(seconds, server.__enter__)
    timer.start()
    try:
        yield
    finally:
        timer.join()
        server.__exit__()


@both
def test_a_server_that_is_down_is_waited_for_as_long_as_connect_says(ask):
    with closed_port() as port:
        server = Server(port=port)
        started = time.monotonic()
        with pytest.raises(UnreachableError, match=f"no server answers at 127.0.0.1:{port}"):
            ask(server, timeout=Timeout(connect=0.4, total=60))
        assert 0.2 < time.monotonic() - started < 50
        with beginning_in(0.5, server):
            assert ask(server, timeout=Timeout(connect=300)) == "yes"


def test_one_attempt_is_one_attempt():
    with (
        closed_port() as port,
        Client(f"127.0.0.1:{port}", timeout=ONE_ATTEMPT, retries=0) as client,
        pytest.raises(UnreachableError, match="iblip serve DIR"),
    ):
        client.ask(IMAGE, "Why?")


def test_an_address_that_accepts_and_is_silent_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"127.0.0.1:{listening.getsockname()[1]}"
        started = time.monotonic()
        with (
            Client(url, timeout=Timeout(connect=0.5)) as client,
            pytest.raises(UnreachableError, match="no server answers at"),
        ):
            client.ask(IMAGE, "Why?")
        assert time.monotonic() - started < 19  # gRPC's own patience is 20 seconds


def test_a_client_waits_until_the_server_is_ready():
    async def wait(url):
        async with AsyncClient(url) as client:
            return await client.wait_until_ready(300)

    with closed_port() as port:
        server = Server(port=port, ready=[False, False, True])
        with beginning_in(0.3, server):
            with Client(server.url) as client:
                assert client.wait_until_ready(300).build.name == "x"
                assert client.wait_until_ready().build.name == "x"
            server.ready.appendleft(False)
            assert asyncio.run(wait(server.url)).build.name == "x"
            server.ready.clear()
            server.ready.append(False)
            with Client(server.url) as client, pytest.raises(NotReadyError, match="is not ready"):
                client.wait_until_ready(3)
        with Client(server.url) as client, pytest.raises(UnreachableError):
            client.wait_until_ready(0.3)
    with Client("nosuch.invalid") as client, pytest.raises(UnknownHostError):
        client.wait_until_ready()


def test_cancelling_ends_a_pause():
    slow = Retries(first_s=60, longest_s=60)
    with (
        Server([FULL]) as server,
        Client(server.url, retries=slow) as client,
    ):
        stream = client.stream(IMAGE, "Why?")
        threading.Timer(0.3, stream.cancel).start()
        with pytest.raises(CancelledError):
            next(stream)

    async def run(url):
        async with AsyncClient(url, retries=slow) as client:
            stream = await client.stream(IMAGE, "Why?")
            reading = asyncio.create_task(stream.answer())
            await asyncio.sleep(0.3)
            await stream.cancel()
            with pytest.raises(CancelledError):
                await reading
            unsent = client.stream(IMAGE, "Why?")
            await unsent.cancel()
            with pytest.raises(CancelledError):
                await unsent

    with Server([FULL]) as server:
        asyncio.run(run(server.url))


def test_leaving_a_map_cancels_its_questions():
    def until_asked(count):
        while len(server.requests) < count:
            time.sleep(0.01)

    def rows():
        yield (IMAGE, "Why?")
        until_asked(1)  # the first row gets the first answer
        yield from [(IMAGE, "Why?")] * 50

    def say_yes_once_all_ask(context):
        until_asked(4)  # a result that is taken earlier would be the only question
        yield from say("yes")(context)

    script = [say_yes_once_all_ask, *[hang] * 100]
    with Server(script) as server, Client(server.url) as client:
        results = client.map(rows(), concurrency=4)
        assert next(results).text == "yes"
        started = time.monotonic()
        results.close()
        assert time.monotonic() - started < 55  # they would have hung for 60 seconds
        assert client.contract()


def test_leaving_a_map_does_not_wait_for_a_server_that_is_down():
    with (
        closed_port() as port,
        Client(f"127.0.0.1:{port}", timeout=600) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        results = client.map([(IMAGE, "Why?")])
        waiting = pool.submit(next, results)
        time.sleep(0.3)
        client.close()
        with pytest.raises(IblipError, match="has been closed"):
            waiting.result(30).unwrap()
