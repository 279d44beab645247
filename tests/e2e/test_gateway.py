"""The gateway in front of a real server: OpenAI's client gets the answers of this project's own."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import os
import re
import signal
import socket
import time
import urllib.request
from pathlib import Path

import openai
import pytest

from iblip.serving.gateway.process import GatewayProcess
from iblip.serving.gateway.token_texts import TokenTexts
from tests.browser import running_browser
from tests.serving.gateway.running import gateway, messages

MODEL = "instructblip-demo-vicuna"
QUESTION = "Describe the image."
LIMIT_S = 60


@pytest.fixture(scope="module")
def served(served_demo):
    return served_demo(MODEL)


@pytest.fixture(scope="module")
def url(served):
    return served.url


@pytest.fixture(scope="module")
def running(served):
    tokens = TokenTexts.from_file(served.build / served.manifest.text.tokenizer)
    with gateway(served.url, name=MODEL, tokens=tokens) as running:
        yield running


browser = pytest.fixture(scope="module")(running_browser)


@pytest.fixture
def address(picture):
    return f"data:image/webp;base64,{base64.b64encode(picture.read_bytes()).decode()}"


@pytest.fixture
def ask(running, address):
    return lambda **options: running.ask(QUESTION, address, model=MODEL, **options)


SAMPLED = {"temperature": 2.0, "seed": 5, "top_p": 0.9}
BEAMS = {"num_beams": 3, "length_penalty": 0.5}

CALLS = [
    ({}, {}),
    ({"max_tokens": 3}, {"max_new_tokens": 3}),
    ({"stop": "is"}, {"stop": ["is"]}),
    (SAMPLED, SAMPLED),
    ({"extra_body": BEAMS}, BEAMS),
    ({"extra_body": {"compat": "lavis"}}, {"compat": "lavis"}),
]
"""Parameters of OpenAI's client, and the same for this project's."""


@pytest.mark.parametrize(("api", "options"), CALLS)
def test_answers_are_those_of_the_client(client, picture, ask, api, options):
    answer, expected = ask(**api), client.ask(picture, QUESTION, **options)
    assert answer.choices[0].message.content == expected.text
    assert answer.usage.prompt_tokens == expected.prompt_tokens
    assert answer.usage.completion_tokens == expected.completion_tokens
    reason = {"eos": "stop", "stop": "stop", "length": "length"}[expected.finish_reason]
    assert answer.choices[0].finish_reason == reason
    pieces = [one.choices[0].delta.content or "" for one in ask(stream=True, **api)]
    assert "".join(pieces) == answer.choices[0].message.content


def test_several_answers_whole_and_streamed(client, picture, ask):
    sampled = {"n": 3, "temperature": 3.0, "seed": 7, "max_tokens": 8}
    expected = client.ask(picture, QUESTION, n=3, temperature=3.0, seed=7, max_new_tokens=8)
    texts = [expected.text, *(one.text for one in expected.others)]
    answer = ask(**sampled)
    assert [one.message.content for one in answer.choices] == texts
    streamed = ["", "", ""]
    for chunk in ask(stream=True, **sampled):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_log_probabilities_name_their_tokens(ask):
    answer = ask(logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    spelt = b"".join(bytes(token.bytes) for token in content if token.token != "</s>")
    assert spelt.decode().strip() == answer.choices[0].message.content
    for token in content:
        assert token.top_logprobs[0].logprob >= token.logprob - 1e-6
        assert len(token.top_logprobs) == 2
        assert token.logprob <= 0


def test_a_closed_list_is_ranked(client, picture, ask):
    names = ["a dog", "a house", "a digit"]
    ranking = client.rank(picture, QUESTION, names)
    schema = {
        "type": "object",
        "properties": {"thing": {"type": "string", "enum": names}},
        "required": ["thing"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema}}
    answer = ask(response_format=form)
    assert json.loads(answer.choices[0].message.content) == {"thing": ranking[0].text}
    scores = [one["score"] for one in answer.model_extra["iblip"]["ranking"]]
    assert all(map(math.isclose, scores, (one.score for one in ranking)))


def test_the_page_shows_the_answers_of_the_client(browser, running, client, picture):
    """Two questions about one image in Chromium, with the probability of every token."""
    questions = (QUESTION, "What digit is in the image?")
    expected = [client.ask(picture, question, logprobs=5) for question in questions]
    with browser.page(running.url.removesuffix("v1")) as page:
        page.wait("document.querySelector('#model').value")
        page.choose("#file", picture)
        page.wait("!document.querySelector('#shown').hidden")
        page.evaluate("document.querySelector('#probabilities').click()")
        for number, question in enumerate(questions, 1):
            page.evaluate(f"document.querySelector('#question').value = {question!r}")
            page.evaluate("document.querySelector('#question').focus()")
            page.press("Enter")
            page.wait(f"document.querySelectorAll('.tokens').length === {number}")
        shown = page.evaluate(
            "[...document.querySelectorAll('.side')].map(side => ({"
            " answer: side.querySelector('.answer').textContent,"
            " tokens: [...side.querySelectorAll('th .token')].map(one => one.textContent),"
            " shares: [...side.querySelectorAll('.number')].map(one => one.innerText.trim())}))"
        )
    for one, answer in zip(reversed(shown), expected, strict=True):  # the last is on top
        assert one["answer"] == answer.text
        assert "".join(one["tokens"]).removesuffix("</s>").strip() == answer.text
        assert len(one["tokens"]) == answer.completion_tokens
        shares = [100 * math.exp(token.logprob) for token in answer.logprobs]
        for text, share in zip(one["shares"], shares, strict=True):
            assert float(text.strip("<% ")) == pytest.approx(share, abs=0.15)


def test_many_at_once(running, address, client, picture):
    expected = client.ask(picture, QUESTION).text

    async def run():
        async with running.async_client as api:
            calls = (
                api.chat.completions.create(model=MODEL, messages=messages(QUESTION, address))
                for _ in range(16)
            )
            return [one.choices[0].message.content for one in await asyncio.gather(*calls)]

    assert asyncio.run(run()) == [expected] * 16


def test_a_single_turn_model_says_so(ask, running, address):
    conversation = [
        *messages(QUESTION, address),
        {"role": "assistant", "content": "A digit."},
        {"role": "user", "content": "Which?"},
    ]
    with pytest.raises(openai.BadRequestError, match="answers one question at a time"):
        running.client.chat.completions.create(model=MODEL, messages=conversation)


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_who_leaves_frees_the_slots(served, running, address, stream):
    """Also where the answer is not streamed, and nothing is written before its end."""
    before = len(running.lines)
    body = json.dumps(
        {
            "model": MODEL,
            "messages": messages(QUESTION, address),
            "stream": stream,
            "n": served.manifest.limits.slots,
            **served.long.to_mapping(),
        }
    ).encode()
    with socket.create_connection(("127.0.0.1", running.port)) as caller:
        caller.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        wait_until(lambda: used(served) != {"0"})
    wait_until(lambda: used(served) == {"0"})
    wait_until(lambda: any("CallerGoneError" in line for line in running.lines[before:]))


def wait_until(is_so):
    end = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def used(served):
    """The slots that are used, as the metrics say it."""
    with urllib.request.urlopen(served.server.metrics_url) as response:
        text = response.read().decode()
    return set(re.findall(r"^iblip_slots_used\{.*\} (\S+)$", text, re.M))


def test_the_process_beside_a_server_is_started_again_and_ends_with_it(served, address):
    told = []
    with GatewayProcess("127.0.0.1", 0, told.append) as process:
        process.start([f"{MODEL}={served.url}"])
        api = openai.OpenAI(base_url=f"{process.url}/v1", api_key="none", max_retries=0)

        def answer():
            return api.chat.completions.create(model=MODEL, messages=messages(QUESTION, address))

        first = answer().choices[0].message.content  # connects before the process listens
        os.kill(process.pid, signal.SIGKILL)
        wait_until(lambda: told)
        assert "The gateway ended with status -9. Starting it again now." in told
        assert answer().choices[0].message.content == first
        child = process.pid
    assert not Path(f"/proc/{child}").exists()
