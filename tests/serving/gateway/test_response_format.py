"""A schema that lists every answer is a ranking; any other holds the answer as it is written."""

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


def asked(schema, **options):
    inner = {"name": "colour", "strict": True, "schema": schema}
    return read_format({"type": "json_schema", "json_schema": inner}, **options)


def test_text_is_text():
    for form in (read_format(None), read_format({"type": "text"})):
        assert form.options == {}
        assert form.content("a cat") == "a cat"


def test_a_list_of_strings_is_a_ranking_whose_answer_is_json():
    form = asked({**ENUM, "title": "Colour"})
    assert form.options == {"candidates": ("red", "dark blue")}
    assert json.loads(form.content("dark blue")) == "dark blue"


def test_an_object_of_one_list_is_one_too():
    form = asked({**closed(colour=ENUM), "title": "Answer"})
    assert form.options == {"candidates": ("red", "dark blue")}
    assert json.loads(form.content("red")) == {"colour": "red"}


@pytest.mark.parametrize(
    "value",
    [
        "text",
        "json_object",
        {"type": "xml"},
        {},
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
def test_a_schema_that_does_not_list_every_answer_holds_it_as_it_is_written(schema):
    form = asked(schema)
    assert form.options == {"json_schema": schema}
    assert form.content('{"a": 1}') == '{"a": 1}'


def test_a_list_is_not_ranked_where_the_request_has_options_that_a_ranking_does_not_take():
    assert asked(ENUM, may_rank=False).options == {"json_schema": ENUM}


def test_any_object_is_one_schema():
    assert read_format({"type": "json_object"}).options == {"json_schema": {"type": "object"}}


def test_a_schema_that_is_too_large_is_refused():
    with pytest.raises(ParameterError, match=r"json_schema has .* characters") as refused:
        asked({"const": "x" * (1 << 15)})
    assert refused.value.param == "response_format"
