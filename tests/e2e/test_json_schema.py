"""Answers that follow a JSON schema, through Triton and every caller."""

from __future__ import annotations

import base64
import json
from typing import Literal

import openai
import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field

from iblip.serving.cli import iblip
from iblip.serving.client import GenerationOptions, OptionError
from tests.fixtures.serving import same
from tests.serving.gateway.running import gateway, messages

QUESTION = "What digit is in the image?"
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue"]},
        "digits": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 9},
            "maxItems": 3,
        },
    },
    "required": ["colour", "digits"],
    "additionalProperties": False,
}
HOSTILE = {"allOf": [{"type": "string", "pattern": f".*{one}.*"} for one in "abcdefghijklmnopqrst"]}
LIMIT = 60


def check(text):
    Draft202012Validator(SCHEMA).validate(json.loads(text))


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "seed": 3}])
def test_the_answer_is_that_of_the_same_build_in_process(served, client, picture, options):
    options = {"json_schema": SCHEMA, "max_new_tokens": LIMIT, **options}
    answer = client.ask(picture, QUESTION, **options)
    assert answer.finish_reason == "eos"
    check(answer.text)
    same(answer, served.in_process(picture, QUESTION, GenerationOptions(**options)))
    assert "".join(client.stream(picture, QUESTION, **options)) == answer.text


def test_each_of_several_sampled_answers_follows_it(client, picture):
    answer = client.ask(
        picture, QUESTION, json_schema=SCHEMA, n=4, temperature=3.0, seed=1, max_new_tokens=LIMIT
    )
    texts = [answer.text, *(one.text for one in answer.others)]
    assert len(set(texts)) > 1
    for text in texts:
        check(text)


def test_one_that_is_cut_off_says_so(client, picture):
    answer = client.ask(picture, QUESTION, json_schema=SCHEMA, max_new_tokens=5)
    assert answer.finish_reason == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer.text)


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"json_schema": {"type": "strnig"}}, "json_schema cannot be used: Invalid type: strnig"),
        ({"json_schema": SCHEMA, "num_beams": 3}, "num_beams is 3 and json_schema is given"),
        ({"json_schema": SCHEMA, "stop": ["a"]}, "stop is .* and json_schema is given"),
        (
            {"json_schema": SCHEMA, "candidates": ["a", "b"]},
            "candidates are given, and json_schema",
        ),
        ({"json_schema": HOSTILE}, "json_schema takes more than 1 s"),
    ],
)
def test_what_cannot_be_is_refused_and_others_are_answered(client, picture, options, cause):
    with pytest.raises(OptionError, match=cause):
        client.ask(picture, QUESTION, **options)
    assert client.ask(picture, QUESTION, max_new_tokens=3).completion_tokens


def test_from_the_command_line(url, picture, tmp_path):
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    words = ["ask", str(picture), QUESTION, "--url", url, f"--max-new-tokens={LIMIT}"]
    for schema in (json.dumps(SCHEMA), f"@{tmp_path / 'schema.json'}"):
        done = CliRunner().invoke(iblip, [*words, "--json-schema", schema])
        assert done.exit_code == 0, done.output
        check(done.stdout)
    done = CliRunner().invoke(iblip, [*words, "--json-schema", "{"])
    assert done.exit_code == 2
    assert "neither JSON nor @FILE" in done.output


class Digit(BaseModel):
    """What is asked for."""

    colour: Literal["red", "green", "blue"]
    digit: int = Field(ge=0, le=9)
    is_large: bool
    beside: list[Literal["left", "right"]] = Field(max_length=2)


@pytest.fixture
def running(served):
    with gateway(served.url, name="demo") as running:
        yield running


@pytest.fixture
def about(picture):
    data = base64.b64encode(picture.read_bytes()).decode()
    return messages(QUESTION, f"data:image/webp;base64,{data}")


def test_openais_client_parses_it_into_a_class(running, about):
    api = running.client.chat.completions
    options = {"model": "demo", "messages": about, "max_tokens": LIMIT, "response_format": Digit}
    for sampled in ({}, {"temperature": 1.5, "seed": 2}):
        answer = api.parse(**options, **sampled)
        assert isinstance(answer.choices[0].message.parsed, Digit)
        assert answer.choices[0].finish_reason == "stop"
    with api.stream(**options) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Digit)
    with pytest.raises(openai.LengthFinishReasonError):
        api.parse(**{**options, "max_tokens": 5})


def test_any_object_and_a_list_that_is_sampled(running, about):
    api = running.client.chat.completions
    listed = {"type": "string", "enum": ["red", "green"]}
    form = {"type": "json_schema", "json_schema": {"name": "colour", "schema": listed}}
    sampled = api.create(model="demo", messages=about, response_format=form, n=2, temperature=2.0)
    assert {json.loads(one.message.content) for one in sampled.choices} <= {"red", "green"}
    form = {"type": "json_object"}
    answer = api.create(model="demo", messages=about, response_format=form, max_tokens=LIMIT)
    (choice,) = answer.choices
    assert choice.message.content.lstrip().startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)


def test_a_schema_that_cannot_be_used_is_a_400_that_names_response_format(running, about):
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "strnig"}}}
    with pytest.raises(openai.BadRequestError, match="Invalid type: strnig") as refused:
        running.client.chat.completions.create(model="demo", messages=about, response_format=form)
    assert refused.value.param == "response_format"
