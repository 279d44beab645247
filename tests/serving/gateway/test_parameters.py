"""The parameters of a request: every generation option, OpenAI's own, and nothing else."""

from __future__ import annotations

import json
from typing import get_type_hints

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming

from iblip.engines.language_model.option_table import OPTIONS
from iblip.engines.language_model.options import GenerationOptions
from iblip.serving.gateway.errors import ParameterError
from iblip.serving.gateway.openapi import openapi_document
from iblip.serving.gateway.parameters import PARAMETERS, parameter_of, read_parameters

BODY = {"model": "x", "messages": []}

VALUES = {
    "model": "x",
    "messages": [],
    "stream": False,
    "stream_options": {"include_usage": True},
    "logprobs": True,
    "top_logprobs": 3,
    "response_format": {"type": "text"},
    "compat": "lavis",
    "preprocessing": "lavis",
    "priority_class": "bulk",
    "timeout": 3.5,
    "metadata": {"a": "b"},
    "store": False,
    "presence_penalty": 0.0,
    "frequency_penalty": 0,
    "modalities": ["text"],
    "tools": [],
    "functions": [],
    "tool_choice": "none",
    "function_call": "auto",
    "parallel_tool_calls": True,
    "service_tier": "auto",
    "user": "somebody",
    "safety_identifier": "somebody",
    "prompt_cache_key": "key",
    "prompt_cache_retention": "24h",
    "reasoning_effort": "none",
    "verbosity": "medium",
    "audio": None,
    "moderation": None,
    "prediction": None,
    "prompt_cache_options": None,
    "web_search_options": None,
}
"""A value of each parameter that is no generation option."""

NEEDED = {
    "top_logprobs": {"logprobs": True},
    "stream_options": {"stream": True},
    "max_instruction": {"truncation": "left"},
}


def value_of(name):
    """A value of a parameter that may be given."""
    option = OPTIONS.get(PARAMETERS[name].option)
    if option is None:
        return VALUES[name]
    if option.example:
        return json.loads(option.example)
    return 2 if option.default is None else option.default


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_parameter_of_the_document_is_accepted_and_may_be_null(name):
    properties = openapi_document(["x"], needs_key=False)["components"]["schemas"]
    assert name in properties["ChatCompletionRequest"]["properties"]
    read_parameters({**BODY, **NEEDED.get(name, {}), name: value_of(name)})
    if name not in BODY:
        assert read_parameters({**BODY, name: None}) == read_parameters(BODY)


def test_every_optional_parameter_of_openai_may_be_null():
    names = get_type_hints(CompletionCreateParamsNonStreaming).keys() - BODY.keys()
    assert {"reasoning_effort", "stop", "tools"} < names
    nulls = dict.fromkeys(names)
    assert read_parameters({**BODY, **nulls}) == read_parameters(BODY)
    options = {"include_usage": None, "include_obfuscation": None}
    asked = read_parameters({**BODY, "stream": True, "stream_options": options})
    assert not asked.include_usage


def test_the_document_has_no_other_parameters():
    schemas = openapi_document(["x"], needs_key=True)["components"]["schemas"]
    request = schemas["ChatCompletionRequest"]
    assert request["properties"].keys() == PARAMETERS.keys()
    assert request["additionalProperties"] is False
    assert request["properties"]["model"]["enum"] == ["x"]


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "logprobs"])
def test_every_generation_option_reaches_the_model_under_its_own_name(name):
    asked = read_parameters({**BODY, **NEEDED.get(name, {}), name: value_of(name)})
    value = getattr(GenerationOptions.from_mapping(asked.options | {}), name)
    assert asked.options[name] == value


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"max_tokens": 3}, {"max_new_tokens": 3}),
        ({"max_completion_tokens": 3}, {"max_new_tokens": 3}),
        ({"max_tokens": 3, "max_completion_tokens": 3}, {"max_new_tokens": 3}),
        ({"stop": "."}, {"stop": (".",)}),
        ({"stop": [".", "!"]}, {"stop": (".", "!")}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 4}, {"logprobs": 4}),
        ({"logprobs": False}, {}),
        ({"logit_bias": {"13": -5.5}}, {"logit_bias": {13: -5.5}}),
        ({"n": 2, "temperature": 1}, {"n": 2, "temperature": 1}),
        ({"presence_penalty": 0, "user": "me"}, {}),
    ],
)
def test_parameters_of_openai_are_options_here(given, options):
    assert read_parameters({**BODY, **given}).options == options


@pytest.mark.parametrize(
    ("given", "param", "words"),
    [
        ({"num_bems": 2}, "num_bems", "Did you mean 'num_beams'"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens is 0; expected an integer, 1 or more"),
        ({"temperature": "hot"}, "temperature", "temperature is 'hot'"),
        ({"presence_penalty": 0.5}, "presence_penalty", "repetition_penalty"),
        ({"frequency_penalty": False}, "frequency_penalty", "expected null or 0"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "expected null or 'none'"),
        ({"tools": [{}]}, "tools", "tools is"),
        ({"logprobs": 3}, "logprobs", "expected true or false"),
        ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        ({"stream_options": {}}, "stream_options", "needs stream"),
        ({"stream": True, "stream_options": {"a": 1}}, "stream_options", "include_usage"),
        (
            {"stream": True, "stream_options": {"include_usage": 1}},
            "stream_options.include_usage",
            "true or false",
        ),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "max_completion_tokens", "leave one out"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "a token in logit_bias is 'a'"),
        ({"stop": [""]}, "stop", "stop is"),
        ({"stop": 3}, "stop", "stop is 3"),
        ({"compat": "llava"}, "compat", "compat is 'llava'"),
        ({"timeout": 0}, "timeout", "timeout is 0"),
        ({"model": None}, "model", "model is missing"),
        ({"model": 3}, "model", "expected a string"),
        ({"messages": None}, "messages", "messages is missing"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(given, param, words):
    with pytest.raises(ParameterError, match=words) as refused:
        read_parameters({**BODY, **given})
    assert refused.value.param == param


def test_an_error_of_options_together_names_the_parameter_that_was_given():
    for given, param in (
        ({"n": 2}, "n"),
        ({"max_tokens": 1, "min_new_tokens": 3}, "min_new_tokens"),
    ):
        asked = read_parameters({**BODY, **given})
        with pytest.raises(Exception, match="expected") as refused:
            GenerationOptions.from_mapping(asked.options)
        assert parameter_of(refused.value, given) == param
