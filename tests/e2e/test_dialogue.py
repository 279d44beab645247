"""MiniGPT-4's dialogue through Triton and the gateway, against the same build and the original."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import pytest

from iblip.export.examples import read_examples
from iblip.serving.client import Client, GenerationOptions
from tests.engines.test_minigpt4 import Original
from tests.fixtures.builds import verified_build
from tests.fixtures.serving import served_build
from tests.serving.gateway.running import gateway

LIMIT = 5


@dataclass(frozen=True)
class Form:
    """How an original writes a conversation: before a question, between it and its answer."""

    checkpoint: str
    human: str
    assistant: str


FORMS = (
    Form("minigpt4-demo", "###Human: ", " ###Assistant: "),
    Form("minigpt4-demo-llama2", "<s>[INST] ", " [/INST] "),
    Form("minigpt4-merge", "<s>[INST] ", " [/INST] "),
)
"""Two demos, and random weights with merged patches, which hold 128 positions."""


@pytest.fixture(scope="module", params=FORMS, ids=lambda form: form.checkpoint)
def form(request):
    return request.param


@pytest.fixture(scope="module")
def checkpoint(form, checkpoints, random_checkpoint):
    path = checkpoints / form.checkpoint
    return path if path.exists() else random_checkpoint(form.checkpoint)


@pytest.fixture(scope="module")
def served(form, checkpoint, checkpoints, demo_build, make_once):
    build = (
        demo_build(form.checkpoint)
        if (checkpoints / form.checkpoint).exists()
        else make_once(
            f"builds/{form.checkpoint}",
            lambda to: verified_build(checkpoint, to, examples=checkpoints / "heldout"),
        )
    )
    with served_build(build) as served:
        yield served


@pytest.fixture(scope="module")
def files(checkpoints):
    return [one.image for one in read_examples(checkpoints / "heldout", 3)]


@pytest.fixture(scope="module")
def original(form, checkpoint):
    return Original(checkpoint, prompt_template="{prompt}")


@pytest.fixture(scope="module")
def api(served):
    with gateway(served.url) as running:
        yield running.client.chat.completions


def user(text, *files):
    parts = [
        {
            "type": "image_url",
            "image_url": {
                "url": "data:image/webp;base64," + base64.b64encode(file.read_bytes()).decode()
            },
        }
        for file in files
    ]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def assistant(text):
    return {"role": "assistant", "content": text}


IMAGE = "<Img><ImageHere></Img> "


@pytest.fixture(scope="module")
def conversations(form, files):
    """By what they show: messages, and the same as the original writes it, with its images."""
    human, answer = form.human, form.assistant
    opening = human.removeprefix("<s>")  # the tokenizer adds the first
    if form.checkpoint == "minigpt4-merge":
        opening = human
    first, second, third = files
    asked, told = "Digit?", "3."
    return {
        "one image, three turns": (
            [
                *(user(asked, first), assistant(told)),
                *(user("Where?"), assistant("Left.")),
                user("Colour?"),
            ],
            f"{opening}{IMAGE}{asked}{answer}{told}{human}Where?{answer}Left."
            f"{human}Colour?{answer}",
            [first],
        ),
        "an image in every turn": (
            [
                *(user(asked, first), assistant(told)),
                *(user(asked, second), assistant(told)),
                user(asked, third),
            ],
            f"{opening}{IMAGE}{asked}{answer}{told}{human}{IMAGE}{asked}{answer}{told}"
            f"{human}{IMAGE}{asked}{answer}",
            [first, second, third],
        ),
        "two in an earlier turn": (
            [user("Look.", first, second), assistant(told), user("Which?")],
            f"{opening}{IMAGE}{IMAGE}Look.{answer}{told}{human}Which?{answer}",
            [first, second],
        ),
        "one in the last turn": (
            [user("Hello."), assistant("Hello!"), user(asked, second)],
            f"{opening}Hello.{answer}Hello!{human}{IMAGE}{asked}{answer}",
            [second],
        ),
    }


NAMES = (
    "one image, three turns",
    "an image in every turn",
    "two in an earlier turn",
    "one in the last turn",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_is_answered_as_the_original_answers_it(
    api, served, original, conversations, name
):
    messages, written, images = conversations[name]
    wanted = original.dialogue(images, written, LIMIT)
    answer = api.create(model="x", messages=messages, max_tokens=LIMIT)
    assert answer.choices[0].message.content == wanted
    pieces = api.create(model="x", messages=messages, max_tokens=LIMIT, stream=True)
    assert "".join(one.choices[0].delta.content or "" for one in pieces) == wanted


@pytest.mark.parametrize("name", NAMES)
def test_the_client_and_the_same_build_in_process_answer_it_alike(
    api, served, form, conversations, name
):
    """Given the conversation as a prompt, whose beginning and end the template adds."""
    messages, written, images = conversations[name]
    prompt = written.removeprefix("<s>").removeprefix(form.human.removeprefix("<s>"))
    prompt = prompt.removesuffix(form.assistant)
    options = GenerationOptions(max_new_tokens=LIMIT)
    wanted = served.pipeline.answer(images, prompt, options)
    with Client(served.url) as client:
        assert client.ask(images, prompt, options=options).token_ids == wanted.token_ids
    answer = api.create(model="x", messages=messages, max_tokens=LIMIT)
    assert answer.choices[0].message.content == wanted.text


def test_what_was_said_and_shown_before_counts(api, conversations):
    """Otherwise the tests above could pass on the last question alone."""
    messages, _, _ = conversations["an image in every turn"]
    whole = api.create(model="x", messages=messages, max_tokens=LIMIT)
    last = api.create(model="x", messages=messages[-1:], max_tokens=LIMIT)
    assert whole.usage.prompt_tokens > last.usage.prompt_tokens
    again = api.create(model="x", messages=messages, max_tokens=LIMIT).usage
    assert 0 < again.prompt_tokens_details.cached_tokens < again.prompt_tokens
    others = [messages[2], *messages[1:]]  # the first image is another
    logprobs = [
        api.create(model="x", messages=one, max_tokens=4, logprobs=True).choices[0].logprobs.content
        for one in (messages, others)
    ]
    assert [one.logprob for one in logprobs[0]] != [one.logprob for one in logprobs[1]]
