"""What is looked at in a request, and refused, before anything is computed for it."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from iblip.export.errors import InputError, OptionError
from iblip.serving.steps.policy import VARIABLE, Policy
from iblip.serving.steps.questions import QuestionReader
from iblip.serving.wire import CANCEL_KEY, PACKED, Limits

LIMITS = Limits(
    max_instruction=30,
    images=3,
    max_length=64,
    num_query_tokens=8,
    default_max_new_tokens=20,
    slots=8,
    queue=4,
    max_prompt_bytes=300,
    max_option_bytes=200,
    max_logprobs=1000,
)
PIXELS = np.arange(3 * 4 * 6 * 3, dtype=np.uint8).reshape(3, 4, 6, 3)


class Words:
    """An instruction tokenizer that counts words."""

    def __call__(self, prompt, **cut):
        count = len(prompt.split())
        if count > 30:
            raise InputError(f"the instruction has {count} tokens; at most 30 fit")
        return {"qformer_input_ids": np.full((1, count), count, np.int64)}


def read(prompt=b"What is it?", pixels=PIXELS, parameters=None, timeout_us=0, **facts):
    reader = QuestionReader(**{"limits": LIMITS, "tokenizer": Words(), **facts})
    text = "" if parameters is None else json.dumps(parameters)
    return reader(pixels, np.array([prompt], dtype=object), text, timeout_us)


def test_a_question_has_what_the_chain_takes_and_when_it_came():
    before, pixels = time.monotonic(), PIXELS.copy()
    question = read(pixels=pixels)
    assert before <= question.arrived <= time.monotonic()
    assert question.inputs["qformer_input_ids"].tolist() == [[3, 3, 3]] * 3
    pixels[:] = 0  # Triton's memory is used again
    assert (question.inputs["pixels"] == PIXELS).all()
    request = question.request(np.zeros((3, 8, 4), np.float32))
    assert (request.prompt, request.deadline) == ("What is it?", None)
    assert 0 <= request.vision_s <= time.monotonic() - before


def test_a_model_without_an_instruction_may_be_asked_nothing():
    question = read(b"", tokenizer=None)
    assert (question.prompt, set(question.inputs)) == ("", {"pixels"})


@pytest.mark.parametrize(
    ("prompt", "images", "parameters", "message"),
    [
        (b" ", 1, {}, "the prompt is empty"),
        (b"\xff", 2, {}, "not UTF-8"),
        (b"long " * 40, 1, {}, "the instruction has 40 tokens; at most 30 fit"),
        (b"long " * 61, 1, {}, "the prompt has 305 bytes; expected at most 300"),
        (b"What?", 0, {}, "the request has 0 images; expected 1 to 3"),
        (b"What?", 1, {"truncation": "up"}, "truncation is 'up'; expected '', 'left' or 'right'"),
        (b"What?", 1, {"stop": json.dumps(["x" * 300])}, "parameters has 3.. bytes; .* 200"),
        (b"What?", 1, {PACKED: json.dumps({"stop": "x" * 300})}, "has 312 bytes; .* 200"),
        (b"What?", 1, {PACKED: '"' * 2000}, "parameters has 4.* bytes; expected at most 1200"),
        (b"What?", 1, {"logprobs": 60}, "of 20 tokens: 1220 .*; expected at most 1000"),
    ],
)
def test_a_faulty_request_is_refused(prompt, images, parameters, message):
    kind = OptionError if parameters else InputError
    with pytest.raises(kind, match=message):
        read(prompt, PIXELS[:images], parameters)


def test_too_many_images_are_refused():
    with pytest.raises(InputError, match="the request has 4 images; expected 1 to 3"):
        read(pixels=np.zeros((4, 4, 6, 3), np.uint8))


def test_sizes_are_looked_at_before_anything_is_tokenised():
    class Never:
        def __call__(self, prompt, **cut):
            raise AssertionError

    with pytest.raises(InputError, match="10000000 bytes"):
        read(b"a" * 10_000_000, tokenizer=Never())


def test_packed_parameters_are_those_of_the_request():
    options = {"max_new_tokens": 5, "temperature": 0.5, "n": 3}
    question = read(parameters={PACKED: json.dumps(options), "stream": False, CANCEL_KEY: "s"})
    assert question.options.temperature == 0.5
    assert (question.stream, question.cancel_key, question.tokens) == (False, "s", 15)


@pytest.mark.parametrize(("given", "default", "left"), [(0, None, None), (0, 7, 7), (3e6, 7, 3)])
def test_a_request_without_a_timeout_has_the_servers(given, default, left):
    question = read(timeout_us=int(given), default_timeout_s=default)
    assert question.seconds_left == (left and pytest.approx(left, abs=1))


def test_a_caller_is_told_apart_by_a_header_only_where_that_is_wanted():
    parameters = {"authorization": "Bearer 1"}
    assert read(parameters=parameters, caller_parameter="authorization").caller == "Bearer 1"
    with pytest.raises(OptionError, match="no option 'authorization'"):
        read(parameters=parameters)


def test_the_operators_policy_travels_in_the_environment():
    policy = Policy(default_timeout_s=60.0, caller_header="authorization", max_caller_requests=3)
    assert Policy.from_environment(policy.to_environment()) == policy
    assert Policy().to_environment() == {}
    assert Policy.from_environment({}) == Policy()
    with pytest.raises(OptionError, match="IBLIP_SERVING_POLICY is damaged"):
        Policy.from_environment({VARIABLE: "{"})
    with pytest.raises(OptionError, match="default_timeout_s is 0"):
        Policy(default_timeout_s=0)
    with pytest.raises(OptionError, match="not told apart"):
        Policy(max_caller_tokens=5)
