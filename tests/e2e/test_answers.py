"""Answers through a real Triton server: whole, streamed, many at once, cancelled, late."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import InferenceServerClient

from iblip.serving.client import (
    AsyncClient,
    CancelledError,
    Client,
    DeadlineError,
    GenerationOptions,
    InputError,
    NotServedError,
    OptionError,
    ProtocolError,
)
from tests.fixtures.serving import same

AT_ONCE = 8


def test_an_answer_is_what_the_engines_say_in_process(served, client, examples):
    for example in examples[:6]:
        same(
            client.ask(example.image, example.prompt),
            served.in_process(example.image, example.prompt),
        )


def test_a_stream_comes_in_pieces_that_join_to_the_answer(served, client, picture):
    options = served.wild(12)
    with client.stream(picture, "Describe the image.", options=options) as stream:
        pieces = list(stream)
        same(stream.answer, served.in_process(picture, "Describe the image.", options))
    assert len(pieces) > 1
    assert "".join(pieces) == stream.answer.text == stream.text


def test_every_kind_of_image_gives_the_same_answer(client, picture):
    image = Image.open(picture)
    file = io.BytesIO()
    image.save(file, "PNG")
    sources = [picture, str(picture), file.getvalue(), image, np.asarray(image)]
    assert len({client.ask(source, "What digit is it?").token_ids for source in sources}) == 1


def test_options_reach_the_engine(served, client, picture):
    options = GenerationOptions(
        temperature=0.8, top_k=20, top_p=0.9, repetition_penalty=1.2, seed=7, max_new_tokens=9
    )
    same(
        client.ask(picture, "What is it?", options=options),
        served.in_process(picture, "What is it?", options),
    )


def test_candidates_are_ranked_as_in_process(served, client, picture):
    candidates = [*map(str, range(300)), "The digit is a 3.", "The digit is a 4.", "größe", "3"]
    options = GenerationOptions(candidates=tuple(candidates))
    prompt = "What digit is in the image?"
    wanted = served.in_process(picture, prompt, options)

    def alike(ranking):
        assert [found.index for found in ranking] == [found.index for found in wanted.ranking]
        scores = [found.score for found in wanted.ranking]
        assert [found.score for found in ranking] == pytest.approx(scores, abs=1e-4)

    answer = client.ask(picture, prompt, options=options)
    alike(answer.ranking)
    assert (answer.text, answer.finish_reason) == (wanted.ranking[0].text, "ranked")
    assert answer.text == client.ask(picture, prompt).text  # what it would say by itself
    alike(client.rank(picture, prompt, candidates))
    penalised = client.rank(picture, prompt, candidates, length_penalty=1)
    assert penalised[-1].score > wanted.ranking[-1].score  # a mean, no sum

    async def rank():
        async with AsyncClient(served.url) as other:
            return await other.rank(picture, prompt, candidates)

    alike(asyncio.run(rank()))
    with client.stream(picture, prompt, options=options) as stream:
        assert list(stream) == [answer.text]


def test_a_stop_string_ends_the_answer_before_itself(served, client, picture):
    whole = client.ask(picture, "Describe the image.", options=served.wild(40)).text
    stop = whole[len(whole) // 2 :][:3]
    options = served.wild(40, stop=(stop,))
    answer = client.ask(picture, "Describe the image.", options=options)
    assert answer.finish_reason == "stop"
    assert answer.text == whole[: whole.index(stop)]


def test_many_at_once_are_as_one_by_one(served, client, examples):
    asked = examples[:40]

    def stream(example):
        with client.stream(example.image, example.prompt) as pieces:
            text = "".join(pieces)
            return text, pieces.answer

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(stream, asked))
    assert len(answers) == len(asked)
    for example, (text, answer) in zip(asked, answers, strict=True):
        same(answer, served.in_process(example.image, example.prompt))
        assert text == answer.text


def test_asyncio_asks_and_streams_as_the_other_client_does(served, picture):
    options = served.wild(10)

    async def run():
        async with AsyncClient(served.url) as client:
            prompts = [f"What digit is number {number}?" for number in range(AT_ONCE)]
            answers = await asyncio.gather(*(client.ask(picture, prompt) for prompt in prompts))
            stream = await client.stream(picture, "Describe the image.", options=options)
            pieces = [piece async for piece in stream]
            with pytest.raises(InputError, match="the prompt is empty"):
                await client.ask(picture, "  ")
            return prompts, answers, pieces, await stream.answer()

    prompts, answers, pieces, streamed = asyncio.run(run())
    for prompt, answer in zip(prompts, answers, strict=True):
        same(answer, served.in_process(picture, prompt))
    same(streamed, served.in_process(picture, "Describe the image.", options))
    assert "".join(pieces) == streamed.text


def test_a_cancelled_answer_says_so_and_keeps_its_text(served, client, picture):
    stream = client.stream(picture, "Describe the image.", options=served.long)
    first = next(stream)
    stream.cancel()
    with pytest.raises(CancelledError, match="the answer was cancelled"):
        list(stream)
    assert stream.text.startswith(first)


def test_cancelled_answers_free_the_engine(served, client, picture):
    # One after another these take many times the deadline below; cancelled, next to nothing.
    streams = [
        client.stream(picture, f"Describe part {number}.", options=served.long)
        for number in range(30)
    ]
    next(streams[0])
    for stream in streams:
        stream.cancel()
    assert client.ask(picture, "What digit is it?", timeout=15).finish_reason != "cancelled"


def test_a_cancelled_task_cancels_its_answer(served, picture):
    async def run():
        async with AsyncClient(served.url) as client:
            task = asyncio.create_task(client.ask(picture, "Describe it.", options=served.long))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            stream = await client.stream(picture, "Describe it.", options=served.long)
            await anext(stream)
            await stream.cancel()
            with pytest.raises(CancelledError):
                await stream.answer()
            return await client.ask(picture, "What digit is it?")

    same(asyncio.run(run()), served.in_process(picture, "What digit is it?"))


def test_a_deadline_ends_the_wait_and_the_server_answers_on(served, client, picture):
    with pytest.raises(DeadlineError, match="not finished by its deadline"):
        client.ask(picture, "Describe the image.", options=served.long, timeout=0.05)
    assert client.ask(picture, "What digit is it?").finish_reason in ("eos", "length")


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        (" \n", {}, InputError, "the prompt is empty"),
        ("digit " * 2000, {}, InputError, "has 200[0-9] tokens; at most [0-9]+ fit"),
        ("What?", {"min_new_tokens": 10**6}, OptionError, "min_new_tokens is 1000000"),
    ],
)
def test_what_the_server_refuses_is_raised_as_its_kind(
    client, picture, prompt, options, error, message
):
    for ask in (client.ask, lambda *a, **k: list(client.stream(*a, **k))):
        with pytest.raises(error, match=message):
            ask(picture, prompt, options=GenerationOptions(**options))


def test_another_model_is_not_taken_for_ours(served, picture):
    with pytest.raises(NotServedError, match="does not serve this model"):
        Client(served.url, model="resnet").ask(picture, "What?")
    with pytest.raises(ProtocolError, match="wire version is none"):
        Client(served.url, model="qformer").ask(picture, "What?")


def test_the_contract_is_the_builds(served, client):
    contract = client.contract()
    assert contract.preprocessing == served.manifest.preprocessing
    assert contract.limits.max_length == served.manifest.language_model.max_length
    assert contract.build.name == served.manifest.name


def test_ten_questions_about_one_image_encode_it_once(served, client):
    rng = np.random.default_rng(11)
    image = rng.integers(0, 256, size=(60, 60, 3), dtype=np.uint8)  # new to the server's cache
    statistics = InferenceServerClient(served.url)

    def count():
        stats = statistics.get_inference_statistics("vision_encoder").model_stats[0]
        return stats.execution_count, stats.inference_stats.cache_hit.count

    ran, hit = count()
    for number in range(10):
        client.ask(image, f"Is there a {number}?")
    ran_after, hit_after = count()
    assert (ran_after - ran, hit_after - hit) == (1, 9)
