"""What is looked at in a request, and refused, before anything is computed for it."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from iblip.engines.language_model.waiting import BULK_PATIENCE_S
from iblip.export.errors import InputError, OptionError
from iblip.serving.steps.policy import VARIABLE, Policy
from iblip.serving.steps.questions import QuestionReader
from iblip.serving.wire.contract import Limits
from iblip.serving.wire.names import CALL_KEY, CANCEL_KEY, PACKED

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
OURS = {CALL_KEY: "ours"}
PIXELS = np.arange(3 * 4 * 6 * 3, dtype=np.uint8).reshape(3, 4, 6, 3)


class Words:
    """An instruction tokenizer that counts words."""

    def __call__(self, prompt, **cut):
        count = len(prompt.split())
        if count > 30:
            raise InputError(f"the instruction has {count} tokens; at most 30 fit")
        return {"qformer_input_ids": np.full((1, count), count, np.int64)}


def reader_with(policy=None, **facts):
    facts = {"limits": LIMITS, "tokenizer": Words(), "call_key": "ours", **facts}
    return QuestionReader(policy=Policy(**(policy or {})), **facts)


def read(prompt=b"What is it?", pixels=PIXELS, parameters=None, timeout_us=0, **facts):
    return read_images({"pixels": pixels}, prompt, parameters, timeout_us, **facts)


def read_images(images, prompt=b"What is it?", parameters=None, timeout_us=0, **facts):
    reader = reader_with(**facts)
    text = "" if parameters is None else json.dumps(parameters)
    return reader(images, np.array([prompt], dtype=object), text, timeout_us)


def files(*images):
    return {"image": np.array(images, dtype=object)}


def test_a_question_has_what_the_chain_takes_and_when_it_came():
    before, pixels = time.monotonic(), PIXELS.copy()
    question = read(pixels=pixels)
    assert before <= question.arrived <= time.monotonic()
    pixels[:] = 0  # Triton's memory is used again
    inputs = reader_with().inputs(question)
    assert inputs["qformer_input_ids"].tolist() == [[3, 3, 3]] * 3
    assert (inputs["pixels"] == PIXELS).all()
    request = question.request(np.zeros((3, 8, 4), np.float32))
    assert (request.prompt, request.deadline) == ("What is it?", None)
    assert 0 <= request.vision_s <= time.monotonic() - before


def test_encoded_images_wait_for_their_pixels():
    question = read_images(files(b"\xff\xd8", "text"), parameters={"preprocessing": "lavis"})
    assert (question.encoded, question.reading) == ((b"\xff\xd8", b"text"), "lavis")
    assert (question.images, len(question.pixels)) == (2, 0)
    assert read_images(files(b"x")).reading == "viewed"
    assert {name: len(ids) for name, ids in reader_with().instruction(question).items()} == {
        "qformer_input_ids": 1
    }
    decoded = question.decoded(PIXELS[:2])
    assert (decoded.encoded, decoded.images) == ((), 2)
    assert {name: len(rows) for name, rows in reader_with().inputs(decoded).items()} == {
        "qformer_input_ids": 2,
        "pixels": 2,
    }


@pytest.mark.parametrize(
    ("images", "parameters", "kind", "message"),
    [
        ({}, {}, InputError, r"has no image; expected image \(files\) or pixels"),
        (
            {**files(b"x"), "pixels": PIXELS},
            {},
            InputError,
            "has both image and pixels; expected im",
        ),
        (files(), {}, InputError, "the request has 0 images; expected 1 to 3"),
        (files(*b"abcd"), {}, InputError, "the request has 4 images; expected 1 to 3"),
        (files(b"x", b"x" * 21), {}, InputError, "an image has 21 bytes; expected at most 20"),
        (files(b"x"), {"preprocessing": "lavs"}, OptionError, "'lavs'; expected 'viewed' or"),
        ({"pixels": PIXELS}, {"preprocessing": "lavis"}, OptionError, "is given with pixels"),
    ],
)
def test_faulty_images_are_refused_before_they_are_decoded(images, parameters, kind, message):
    with pytest.raises(kind, match=message):
        read_images(images, parameters=parameters, most_encoded=20)


def test_a_model_without_an_instruction_may_be_asked_nothing():
    question = read(b"", tokenizer=None)
    assert question.prompt == ""
    assert set(reader_with(tokenizer=None).inputs(question)) == {"pixels"}


@pytest.mark.parametrize(
    ("prompt", "images", "parameters", "message"),
    [
        (b" ", 1, {}, "the prompt is empty"),
        (b"\xff", 2, {}, "not UTF-8"),
        (b"long " * 61, 1, {}, "the prompt has 305 bytes; expected at most 300"),
        (b"What?", 0, {}, "the request has 0 images; expected 1 to 3"),
        (b"What?", 1, {"truncation": "up"}, "truncation is 'up'; expected '', 'left' or 'right'"),
        (b"What?", 1, {"stop": json.dumps(["x" * 300])}, "parameters has 3.. bytes; .* 200"),
        (b"What?", 1, {**OURS, PACKED: json.dumps({"stop": "x" * 300})}, "has 312 bytes; .* 200"),
        (b"What?", 1, {**OURS, PACKED: '"' * 2000}, "parameters has 4.* bytes; .* at most 1200"),
        (b"What?", 1, {PACKED: "{}"}, "there is no option 'options_json'"),
        (
            b"What?",
            1,
            {PACKED: "{}", CALL_KEY: "x"},
            "there is no option '(call_key|options_json)'",
        ),
        (b"What?", 1, {CANCEL_KEY: 1.5}, "cancel_key is 1.5; expected a string of at most 256"),
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


def test_an_instruction_that_is_too_long_is_found_when_it_is_tokenised():
    with pytest.raises(InputError, match="the instruction has 40 tokens; at most 30 fit"):
        reader_with().inputs(read(b"long " * 40))


def test_sizes_are_looked_at_before_anything_is_tokenised():
    class Never:
        def __call__(self, prompt, **cut):
            raise AssertionError

    with pytest.raises(InputError, match="10000000 bytes"):
        read(b"a" * 10_000_000, tokenizer=Never())


def test_packed_parameters_are_those_of_the_request():
    options = {"max_new_tokens": 5, "temperature": 0.5, "n": 3}
    outer = {**OURS, PACKED: json.dumps(options), "stream": False, CANCEL_KEY: "s"}
    question = read(parameters=outer)
    assert question.options.temperature == 0.5
    assert (question.stream, question.cancel_key, question.tokens) == (False, "s", 15)


@pytest.mark.parametrize(("given", "default", "left"), [(0, None, None), (0, 7, 7), (3e6, 7, 3)])
def test_a_request_without_a_timeout_has_the_servers(given, default, left):
    question = read(timeout_us=int(given), policy={"default_timeout_s": default})
    assert question.deadline == (left and pytest.approx(time.monotonic() + left, abs=1))


BY_HEADER = {"caller_header": "authorization", "max_caller_tokens": 30}


def test_a_caller_is_told_apart_by_a_header_only_where_that_is_wanted():
    parameters = {"Authorization": "Bearer 1"}
    assert read(parameters=parameters, policy=BY_HEADER).caller == "Bearer 1"
    assert read(policy=BY_HEADER).caller == ""  # all of these are one
    assert read().caller is None
    with pytest.raises(OptionError, match="no option 'Authorization'"):
        read(parameters=parameters)


def test_nobody_passes_for_another_caller():
    twice = {"authorization": "a", "Authorization": "b"}
    with pytest.raises(OptionError, match="authorization is given 2 times"):
        read(parameters=twice, policy=BY_HEADER)
    packed = {**OURS, PACKED: json.dumps({"authorization": "a"})}
    assert read(parameters=packed, policy=BY_HEADER).caller == "a"
    with pytest.raises(OptionError, match="no option 'options_json'"):
        read(parameters={PACKED: packed[PACKED], "authorization": "b"}, policy=BY_HEADER)


def test_what_no_caller_may_have_under_way_is_never_admitted():
    with pytest.raises(OptionError, match=r"may generate 40 tokens; .* at most 30"):
        read(parameters={"max_new_tokens": 20, "n": 2, "temperature": 1.0}, policy=BY_HEADER)
    ranking = {"candidates": json.dumps(["a", "b"])}
    assert read(parameters=ranking, policy=BY_HEADER).tokens == 2


def test_bulk_is_urgent_once_it_has_waited():
    assert read().is_urgent
    bulk = read(parameters={"priority_class": "bulk"})
    assert not bulk.is_urgent
    assert replace(bulk, arrived=bulk.arrived - BULK_PATIENCE_S).is_urgent


def test_the_operators_policy_travels_in_the_environment():
    policy = Policy(default_timeout_s=60.0, caller_header="authorization", max_caller_requests=3)
    assert Policy.from_environment(policy.to_environment()) == policy
    assert Policy().to_environment() == {}
    assert Policy.from_environment({}) == Policy()
    with pytest.raises(OptionError, match="IBLIP_SERVING_POLICY is damaged"):
        Policy.from_environment({VARIABLE: "{"})
    with pytest.raises(OptionError, match="default_timeout_s is 0"):
        Policy(default_timeout_s=0)
    for number in (float("inf"), float("nan"), 1e20):
        with pytest.raises(OptionError, match="expected more than 0, at most 1e"):
            Policy(default_timeout_s=number)
    with pytest.raises(OptionError, match="not told apart"):
        Policy(max_caller_tokens=5)
