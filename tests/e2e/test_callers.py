"""What callers do with clients, on a real server: loops, threads, file objects, numpy, closing."""

from __future__ import annotations

import asyncio
import base64
import io
import pickle
import threading

import numpy as np
import pytest

from iblip.serving.client import (
    AsyncClient,
    Client,
    ClientError,
    GenerationOptions,
    UnreachableError,
)
from tests.ports import free_ports

QUESTION = "What digit is in the image?"


@pytest.fixture(scope="module")
def url(served_demo):
    return served_demo("instructblip-demo-vicuna").url


@pytest.fixture
def expected(client, picture):
    return client.ask(picture, QUESTION).text


def test_images_come_as_web_code_has_them(client, picture, expected):
    data = picture.read_bytes()
    encoded = base64.b64encode(data).decode()
    with picture.open("rb") as opened:
        for image in (
            io.BytesIO(data),
            opened,
            picture.absolute().as_uri(),
            f"data:image/png;base64,{encoded}",
            encoded,
            base64.urlsafe_b64encode(data).decode().rstrip("="),
        ):
            assert client.ask(image, QUESTION).text == expected


def test_numpy_numbers_are_options(client, picture):
    plain = GenerationOptions(max_new_tokens=4, temperature=0.5, seed=7, stop_token_ids=(3,))
    numbers = {
        "max_new_tokens": np.int64(4),
        "temperature": np.float32(0.5),
        "seed": np.uint8(7),
        "stop_token_ids": np.array([3]),
    }
    wanted = client.ask(picture, QUESTION, options=plain).token_ids
    assert client.ask(picture, QUESTION, options=numbers).token_ids == wanted
    direct = GenerationOptions(**{**numbers, "stop_token_ids": (np.int32(3),)})
    assert client.ask(picture, QUESTION, options=direct).token_ids == wanted


def test_an_asyncio_client_serves_one_loop_after_another(url, picture, expected):
    client = AsyncClient(url)  # no loop runs here
    for _ in range(2):
        assert asyncio.run(client.ask(picture, QUESTION)).text == expected

    answers = []
    thread = threading.Thread(
        target=lambda: answers.append(asyncio.run(client.ask(picture, QUESTION)).text)
    )
    thread.start()
    thread.join()
    assert answers == [expected]


def test_two_loops_at_the_same_time_are_said(url, picture, expected):
    async def run():
        client = AsyncClient(url)
        await client.ask(picture, QUESTION)
        with pytest.raises(ClientError, match="in use in another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(client.ask(picture, QUESTION)))
        answer = await client.ask(picture, QUESTION)
        await client.close()
        await client.close()
        with pytest.raises(ClientError, match="has been closed; create another"):
            await client.ask(picture, QUESTION)
        return answer.text

    assert asyncio.run(run()) == expected


def test_a_closed_client_says_so(url, picture):
    client = Client(url)
    client.close()
    client.close()
    with pytest.raises(ClientError, match="has been closed; create another"):
        client.ask(picture, QUESTION)


def test_a_pickled_client_connects_by_itself(client, url, picture, expected):
    client.ask(picture, QUESTION)
    assert pickle.loads(pickle.dumps(client)).ask(picture, QUESTION).text == expected


@pytest.mark.parametrize("name", ["http_proxy", "grpc_proxy"])
def test_a_proxy_is_not_asked_for_a_server_on_this_machine(
    url, picture, expected, monkeypatch, name
):
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert Client(url).ask(picture, QUESTION).text == expected
    assert asyncio.run(AsyncClient(url).ask(picture, QUESTION)).text == expected


def test_without_a_timeout_nothing_is_waited_for(picture):
    (port,) = free_ports(1)
    with pytest.raises(UnreachableError, match=f"no server answers at 127.0.0.1:{port}"):
        Client(f"127.0.0.1:{port}").ask(picture, QUESTION)


def test_a_server_that_stays_down_is_said_at_the_end_of_the_timeout(picture):
    (port,) = free_ports(1)
    with pytest.raises(UnreachableError, match="Connection refused"):
        Client(f"127.0.0.1:{port}", timeout=0.5).ask(picture, QUESTION)
    with pytest.raises(UnreachableError, match="Connection refused"):
        asyncio.run(AsyncClient(f"127.0.0.1:{port}", timeout=0.5).ask(picture, QUESTION))
