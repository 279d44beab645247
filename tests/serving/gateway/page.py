"""The page at `/` in a real Chromium, and what a person does on it."""

from __future__ import annotations

import json

from iblip.engines.language_model.types import Answer, Timing, TokenLogprob
from iblip.serving.wire.answers import finish_from_answer
from tests.serving.client.scripted import response

ASKED = "document.querySelector('#go').getAttribute('aria-disabled') === 'false'"


READY = (
    "document.querySelector('#option-seed')"
    " && (document.querySelector('#model').value || !document.querySelector('#access').hidden)"
)
"""The options have their fields, and the models are there, unless they want a key."""


def home(running):
    return running.url.removesuffix("v1")


def put_photo(page, photo):
    page.choose("#file", photo)
    page.wait("!document.querySelector('#shown').hidden")


def ask(page, question="What?"):
    """Asks, and waits for the end."""
    page.evaluate(f"document.querySelector('#question').value = {json.dumps(question)}")
    page.evaluate("document.querySelector('#go').click()")
    page.wait(ASKED)


def focused(page):
    return page.evaluate("document.activeElement.id")


def set_option(page, name, value):
    field = f"document.querySelector('#option-{name}')"
    page.evaluate(f"{field}.value = {json.dumps(value)}")
    page.evaluate(f"{field}.dispatchEvent(new Event('input', {{bubbles: true}}))")


def prompt_of(request):
    return request.raw_input_contents[1][4:].decode()


def with_logprobs(*pieces, seed=None):
    def act(context):
        for piece in pieces:
            yield response(piece)
        logprobs = tuple(
            TokenLogprob(token_id=one, logprob=-0.1 * one, top=((one, -0.1 * one), (90, -3.0)))
            for one, _ in enumerate(pieces)
        )
        answer = Answer(
            text="".join(pieces),
            token_ids=tuple(range(len(pieces))),
            finish_reason="length",
            prompt_tokens=9,
            completion_tokens=len(pieces),
            seed=seed,
            logprobs=logprobs,
            timing=Timing(vision_s=0.04, queue_s=0.002, prefill_s=0.02, decode_s=0.5),
        )
        yield response("", finish_from_answer(answer))

    return act
