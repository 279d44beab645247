"""Messages become the prompt of one question, or of MiniGPT-4's dialogue."""

from __future__ import annotations

from dataclasses import replace

import pytest

from iblip.engines.text.prompts import MARK, _split_at_images
from iblip.export.families.minigpt4 import LLAMA2_TEMPLATE, SYSTEM, VICUNA_TEMPLATE
from iblip.serving.gateway.conversation import prompt_from_turns, turns_from_messages
from iblip.serving.gateway.errors import ParameterError
from tests.serving.client.scripted import CONTRACT
from tests.serving.gateway.running import messages

SINGLE = replace(CONTRACT, prompt_template="{image}{prompt}")
VICUNA = replace(CONTRACT, prompt_template=VICUNA_TEMPLATE)
LLAMA2 = replace(CONTRACT, prompt_template=LLAMA2_TEMPLATE)

A, B = "data:,a", "data:,b"


def image(url):
    return {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}


def user(*parts):
    content = [{"type": "text", "text": one} if isinstance(one, str) else one for one in parts]
    return {"role": "user", "content": content}


def assistant(text):
    return {"role": "assistant", "content": text, "refusal": None, "tool_calls": None}


def whole(conversation, contract):
    """What the model reads, with `(image)` in the place of each, and the images."""
    prompt, images = prompt_from_turns(turns_from_messages(conversation), contract)
    texts = _split_at_images(contract.prompt_template, prompt, len(images), "places")
    return "(image)".join(texts), images


@pytest.mark.parametrize("contract", [SINGLE, VICUNA, LLAMA2])
def test_one_question_is_the_prompt_as_it_is(contract):
    turns = turns_from_messages(messages("What is it?", A, B))
    assert prompt_from_turns(turns, contract) == ("What is it?", (A, B))
    turns = turns_from_messages([{"role": "user", "content": "Where?"}])
    assert prompt_from_turns(turns, contract) == ("Where?", ())


def test_messages_of_a_user_that_follow_each_other_are_one_question():
    turns = turns_from_messages([user(image(A)), user("What", "is it?")])
    assert prompt_from_turns(turns, SINGLE) == ("What\nis it?", (A,))


DIALOGUE = [user(image(A), "q1"), assistant("a1"), user("q2"), assistant("a2"), user("q3")]


def test_earlier_turns_are_written_as_minigpt4_does():
    """`Conversation.get_prompt` with `SeparatorStyle.SINGLE` and its two separators."""
    vicuna = (
        f"{SYSTEM}###Human: <Img>(image)</Img> q1###Assistant: a1###Human: q2###Assistant: a2"
        "###Human: q3###Assistant: "
    )
    llama2 = (
        f"{SYSTEM}<s>[INST] <Img>(image)</Img> q1 [/INST] a1<s>[INST] q2 [/INST] a2<s>[INST] q3"
        " [/INST] "
    )
    assert whole(DIALOGUE, VICUNA) == (vicuna, (A,))
    assert whole(DIALOGUE, LLAMA2) == (llama2, (A,))


def test_an_image_of_a_later_turn_is_in_its_place():
    read, images = whole([user(image(A), "q1"), assistant("a1"), user(image(B), "q2")], VICUNA)
    assert images == (A, B)
    assert read == (
        f"{SYSTEM}###Human: <Img>(image)</Img> q1###Assistant: a1###Human: <Img>(image)</Img> q2"
        "###Assistant: "
    )
    late = whole([user("hello"), assistant("a1"), user(image(A), "q2")], VICUNA)[0]
    assert late == (
        f"{SYSTEM}###Human: hello###Assistant: a1###Human: <Img>(image)</Img> q2###Assistant: "
    )


def test_a_message_may_mark_the_places_of_its_images():
    conversation = [user(image(A), f"In {MARK}, what?"), assistant("a1"), user("q2")]
    read, _ = whole(conversation, VICUNA)
    assert "###Human: In (image), what?###Assistant: a1###Human: q2" in read


def test_a_model_for_single_questions_refuses_earlier_turns():
    with pytest.raises(ParameterError, match="answers one question at a time") as refused:
        whole(DIALOGUE, SINGLE)
    assert refused.value.param == "messages"


@pytest.mark.parametrize(
    ("conversation", "param", "words"),
    [
        ([], "messages", "an empty list"),
        ("hello", "messages", "expected a list"),
        (["hello"], "messages[0]", "expected an object"),
        ([{"role": "system", "content": "Be brief."}], "messages[0].role", "user's message"),
        ([{"role": "developer", "content": "x"}], "messages[0].role", "user's message"),
        ([{"role": "tool", "content": "x"}], "messages[0].role", "'user' or 'assistant'"),
        ([user("q"), assistant("a")], "messages[1].role", "the last message"),
        ([assistant("a"), user("q")], "messages[0].role", "the first"),
        ([user("q"), assistant("a"), assistant("b"), user("c")], "messages[2].role", "follow"),
        ([{"role": "user"}], "messages[0].content", "None; expected text"),
        ([{"role": "user", "content": 3}], "messages[0].content", "expected text"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0].type", "'text'"),
        ([user({"type": "input_audio"})], "messages[0].content[0].type", "input_audio"),
        ([user({"type": "text"})], "messages[0].content[0].text", "expected text"),
        ([user({"type": "image_url"})], "messages[0].content[0].image_url", "with url"),
        ([user({"type": "image_url", "image_url": "data:"})], None, "with url"),
        ([user({"type": "image_url", "image_url": {}})], None, "expected text"),
        ([user({"type": "image_url", "image_url": {"url": A, "detail": 3}})], None, "detail is 3"),
        ([{**user("q"), "tool_calls": [{}]}], "messages[0].tool_calls", "do not know"),
        (
            [user("q"), {"role": "assistant", "content": [image(A)]}, user("q")],
            None,
            "has an image",
        ),
    ],
)
def test_what_no_model_knows_is_refused_with_its_place(conversation, param, words):
    with pytest.raises(ParameterError, match=words) as refused:
        turns_from_messages(conversation)
    assert param is None or refused.value.param == param
