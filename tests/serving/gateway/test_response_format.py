"""A schema that lists every answer is a ranking; any other is refused."""

from __future__ import annotations

import json

import pytest

from iblip.serving.gateway.errors import ParameterError
from iblip.serving.gateway.response_format import read_format

ENUM = {"type": "string", "enum": ["red", "dark blue"]}


def closed(**properties):
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def asked(schema):
    return read_format(
        {"type": "json_schema", "json_schema": {"name": "colour", "strict": True, "schema": schema}}
    )


def test_text_is_text():
    for form in (read_format(None), read_format({"type": "text"})):
        assert form.candidates == ()
        assert form.content("a cat") == "a cat"


def test_a_list_of_strings_is_a_ranking_whose_answer_is_json():
    form = asked({**ENUM, "title": "Colour"})
    assert form.candidates == ("red", "dark blue")
    assert json.loads(form.content("dark blue")) == "dark blue"


def test_an_object_of_one_list_is_one_too():
    form = asked({**closed(colour=ENUM), "title": "Answer"})
    assert form.candidates == ("red", "dark blue")
    assert json.loads(form.content("red")) == {"colour": "red"}


@pytest.mark.parametrize(
    "value",
    [
        "text",
        {"type": "json_object"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"schema": []}},
    ],
)
def test_other_formats_are_refused(value):
    with pytest.raises(ParameterError, match="expected") as refused:
        read_format(value)
    assert refused.value.param == "response_format"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"type": "string", "enum": []},
        {"type": "string", "enum": ["red", 3]},
        {"type": "string", "enum": ["red", " "]},
        {**ENUM, "minLength": 4},
        {"type": "integer", "enum": [1]},
        closed(),
        closed(a=ENUM, b=ENUM),
        closed(a={"type": "string"}),
        {**closed(a=ENUM), "additionalProperties": True},
        {**closed(a=ENUM), "required": []},
        {**closed(a=ENUM), "minProperties": 1},
        {"$ref": "#/$defs/Colour"},
    ],
)
def test_schemas_that_do_not_list_every_answer_are_refused(schema):
    with pytest.raises(ParameterError) as refused:
        asked(schema)
    assert refused.value.param == "response_format"
