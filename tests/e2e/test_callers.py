"""What callers do with clients, on a real server: loops, threads, file objects, numpy, closing."""

from __future__ import annotations

import asyncio
import base64
import io
import pickle
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from iblip.serving.client import (
    AsyncClient,
    Client,
    ClientError,
    GenerationOptions,
    InputError,
    UnreachableError,
)
from iblip.serving.client.patience import ONE_ATTEMPT
from tests.fixtures.serving import same
from tests.ports import closed_port

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


def test_a_tensor_is_an_image(client, picture, expected):
    array = np.asarray(Image.open(picture).convert("RGB"))
    tensor = torch.from_numpy(array.copy())
    assert client.ask(tensor, QUESTION).text == expected
    assert client.ask(tensor.permute(2, 0, 1), QUESTION).text == expected


def test_many_rows_are_asked_at_once(served_demo, client, examples):
    served = served_demo("instructblip-demo-vicuna")
    asked = examples[:20]

    def rows():
        for example in asked:
            yield (example.image, example.prompt)
        yield {"image": asked[0].image, "prompt": "Describe the image.", "max_new_tokens": 1}
        yield ("no/such.png", "What?")
        yield {"image": asked[0].image, "prompt": asked[0].prompt}

    async def run():
        async with AsyncClient(served.url) as other:
            return [result async for result in other.map(rows(), concurrency=8)]

    for results in (list(client.map(rows(), concurrency=8)), asyncio.run(run())):
        assert [result.index for result in results] == list(range(23))
        for example, result in zip(asked, results[:20], strict=True):
            same(result.unwrap(), served.in_process(example.image, example.prompt))
        assert results[20].unwrap().completion_tokens == 1
        assert isinstance(results[21].error, InputError)
        assert results[22].text == results[0].text


def test_a_stream_needs_no_await(url, client, picture):
    whole = client.ask(picture, "Describe the image.", max_new_tokens=12)

    async def run():
        async with AsyncClient(url) as other:
            stream = other.stream(picture, "Describe the image.", max_new_tokens=12)
            text = "".join([piece async for piece in stream])
            return text, await stream.answer()

    text, answer = asyncio.run(run())
    assert text == answer.text == whole.text
    same(answer, whole)


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


def test_an_asyncio_client_serves_two_loops_at_the_same_time(url, picture, expected):
    async def run():
        client = AsyncClient(url)
        asked = [client.ask(picture, QUESTION) for _ in range(4)]
        other = asyncio.to_thread(lambda: asyncio.run(client.ask(picture, QUESTION)))
        answers = await asyncio.gather(other, *asked)
        assert [answer.text for answer in answers] == [expected] * 5
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


def test_nothing_is_waited_for_where_the_caller_says_so(picture):
    with closed_port() as port:
        unreachable = f"no server answers at 127.0.0.1:{port}"
        with pytest.raises(UnreachableError, match=unreachable):
            Client(f"127.0.0.1:{port}", timeout=ONE_ATTEMPT).ask(picture, QUESTION)


def test_a_server_that_stays_down_is_said_at_the_end_of_the_timeout(picture):
    with closed_port() as port:
        with pytest.raises(UnreachableError, match="Connection refused"):
            Client(f"127.0.0.1:{port}", timeout=0.5).ask(picture, QUESTION)
        with pytest.raises(UnreachableError, match="Connection refused"):
            asyncio.run(AsyncClient(f"127.0.0.1:{port}", timeout=0.5).ask(picture, QUESTION))
