"""Every option of generation, many at once, on every way to a real server."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from click.testing import CliRunner

from iblip.export.images import pixels_from_image
from iblip.serving.cli import iblip
from iblip.serving.client import AsyncClient, GenerationOptions, InputError, OptionError
from iblip.serving.wire.answers import answer_from_finish
from iblip.serving.wire.parameters import parameters_from_options

PROMPT = "Describe the image."

SETS = {
    "draws": {
        "n": 3,
        "temperature": 0.9,
        "seed": 5,
        "logprobs": 2,
        "min_p": 0.001,
        "top_k": 200,
        "top_p": 0.99,
        "no_repeat_ngram_size": 2,
        "repetition_penalty": 1.1,
        "logit_bias": {"11": 2.5, "17": -5},
        "banned_words": ["blue"],
        "stop_token_ids": [23],
        "stop": ["zzz"],
        "min_new_tokens": 3,
        "max_new_tokens": 20,
    },
    "beams": {
        "num_beams": 4,
        "n": 2,
        "length_penalty": -0.5,
        "early_stopping": "never",
        "banned_words": ["blue", "red"],
        "no_repeat_ngram_size": 2,
        "logit_bias": {"11": 1.5},
        "max_new_tokens": 12,
    },
    "beams that stop early": {
        "num_beams": 3,
        "beam_scorer": "v4",
        "early_stopping": True,
        "length_penalty": 2.0,
    },
    "greedy": {"logprobs": 5, "stop_token_ids": [3], "banned_words": ["a"], "max_new_tokens": 15},
    "lengths": {
        "max_length": 60,
        "min_length": 30,
        "repetition_penalty": 1.5,
        "penalty_scope": "answer",
        "truncation": "left",
        "max_instruction": 4,
    },
}

ECHO = {"echo": True, "max_new_tokens": 5}
"""Of decoder-only models."""


def test_every_option_but_those_that_say_what_is_answered_is_among_these():
    named = {name for options in (*SETS.values(), ECHO) for name in options}
    assert {field.name for field in fields(GenerationOptions)} - named == {
        "candidates",
        "json_schema",
    }


def test_the_prompt_is_echoed_or_refused(served, client, picture):
    options = GenerationOptions(**ECHO)
    if served.manifest.language_model.is_encoder_decoder:
        with pytest.raises(OptionError, match="echo is true; this model is an encoder-decoder"):
            client.ask(picture, PROMPT, options=options)
    else:
        answer = client.ask(picture, PROMPT, options=options)
        assert answer.text.startswith(PROMPT)
        assert timeless(answer) == timeless(served.in_process(picture, PROMPT, options))


def test_an_instruction_is_cut_on_the_server(served, client, picture):
    tail, options = "What digit is in the image?", {"truncation": "left", "max_instruction": 8}
    prompt = "Please look at all of this picture. " * 20 + tail
    limit = served.manifest.text.max_instruction
    with pytest.raises(InputError, match=rf"instruction has .* tokens; at most {limit} fit"):
        client.ask(picture, prompt * 2)
    cut = GenerationOptions(max_new_tokens=20, **options)
    assert timeless(client.ask(picture, prompt, options=cut)) == timeless(
        served.in_process(picture, prompt, cut)
    )
    with pytest.raises(OptionError, match=r"max_instruction is 2; .* special tokens"):
        client.ask(picture, prompt, options=replace(cut, max_instruction=2))


@pytest.fixture(params=SETS, ids=str)
def options(request):
    return GenerationOptions.from_mapping(SETS[request.param])


@pytest.fixture
def reference(served, picture, options):
    return timeless(served.in_process(picture, PROMPT, options))


def timeless(answer):
    """Without its times, which are whole, and what was in the prefix cache by chance."""
    assert all(seconds >= 0 for seconds in asdict(answer.timing).values())
    return replace(answer, timing=None, cached_prompt_tokens=None)


def test_the_client(served, client, picture, options, reference):
    assert timeless(client.ask(picture, PROMPT, options=options)) == reference
    with client.stream(picture, PROMPT, options=options) as stream:
        assert "".join(stream) == reference.text
        assert timeless(stream.answer) == reference


def test_the_asyncio_client(served, picture, options, reference):
    async def run():
        async with AsyncClient(served.url) as client:
            stream = await client.stream(picture, PROMPT, options=options)
            return await client.ask(picture, PROMPT, options=options), await stream.answer()

    assert [timeless(answer) for answer in asyncio.run(run())] == [reference, reference]


def test_the_one_answer_model(served, picture, options, reference):
    pixels = pixels_from_image(picture, served.manifest.preprocessing)[None]
    inputs = [
        grpcclient.InferInput("pixels", list(pixels.shape), "UINT8"),
        grpcclient.InferInput("prompt", [1], "BYTES"),
    ]
    inputs[0].set_data_from_numpy(pixels)
    inputs[1].set_data_from_numpy(np.array([PROMPT.encode()], dtype=np.object_))
    with grpcclient.InferenceServerClient(served.url) as client:
        parameters = parameters_from_options(options)
        result = client.infer("instructblip_unary", inputs, parameters=parameters)
    text, finish = (result.as_numpy(name)[0].decode() for name in ("text", "finish"))
    assert timeless(answer_from_finish(text, finish)) == reference


def test_the_command(served, picture, options, reference):
    command = ["ask", str(picture), PROMPT, "--json", "--url", served.url, *flags(options)]
    done = CliRunner().invoke(iblip, command)
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert list(printed.pop("timing")) == ["vision_s", "queue_s", "prefill_s", "decode_s"]
    assert 0 <= printed.pop("cached_prompt_tokens") < printed["prompt_tokens"]
    wanted = json.loads(json.dumps(asdict(reference)))
    del wanted["timing"], wanted["cached_prompt_tokens"]
    assert printed == {"format": 1, **wanted}


def flags(options):
    """The options as a user types them."""
    typed = []
    for name, value in options.to_mapping().items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, list):
            typed += [word for item in value for word in (flag, str(item))]
        elif isinstance(value, dict):
            typed += [word for key, bias in value.items() for word in (flag, key, str(bias))]
        else:
            typed += [flag, str(value).lower()]
    return typed


def test_the_times_add_up_to_less_than_the_caller_waited(served, client, picture):
    started = time.monotonic()
    timing = client.ask(picture, PROMPT, options=served.wild(20)).timing
    waited = time.monotonic() - started
    assert timing.vision_s > 0
    assert 0 < sum(asdict(timing).values()) < waited
