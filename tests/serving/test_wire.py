"""What one end writes, the other reads."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from iblip.engines.language_model.option_kinds import Choice, Integer, Number
from iblip.engines.language_model.option_table import OPTIONS
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import (
    Answer,
    Completion,
    RankedCandidate,
    Timing,
    TokenLogprob,
)
from iblip.export.artifact.manifest import Preprocessing
from iblip.export.errors import (
    ContractError,
    DeadlineError,
    EngineError,
    InputError,
    OptionError,
    QueueFullError,
)
from iblip.serving.steps.questions import prompt_from_tensor
from iblip.serving.wire.answers import answer_from_finish, finish_from_answer
from iblip.serving.wire.contract import Limits, ServedBuild, ServerContract
from iblip.serving.wire.errors import (
    error_from_chain,
    error_from_text,
    status_from_error,
    text_from_error,
)
from iblip.serving.wire.names import PACKED
from iblip.serving.wire.parameters import (
    options_from_parameters,
    parameters_from_options,
    priority_from_parameters,
    stream_from_parameters,
    unpacked,
)

ANSWER = Answer(
    text="a «blue» 7",
    token_ids=(4, 5),
    finish_reason="eos",
    prompt_tokens=12,
    completion_tokens=3,
    seed=None,
    timing=Timing(vision_s=0.125, queue_s=0.5, prefill_s=0.25, decode_s=1.0),
)


LOGPROBS = (
    TokenLogprob(token_id=4, logprob=-0.5, top=((4, -0.5), (9, -1.25))),
    TokenLogprob(token_id=5, logprob=-2.0, top=()),
)
RANKED = tuple(
    RankedCandidate(index=i, text=t, token_ids=(i, 1), logprob=-i - 0.5, score=-i - 0.5)
    for i, t in enumerate(["a 7", "größe\n"])
)
OTHER = Completion(text="o\nther", token_ids=(7,), finish_reason="stop", completion_tokens=1)


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER,
        replace(ANSWER, logprobs=LOGPROBS, seed=3),
        replace(ANSWER, score=-0.75, others=(OTHER, replace(OTHER, score=-1.5))),
        replace(ANSWER, others=(replace(OTHER, logprobs=LOGPROBS),)),
        replace(ANSWER, finish_reason="ranked", score=-0.5, ranking=RANKED),
        replace(ANSWER, cached_prompt_tokens=8),
    ],
)
def test_an_answer_survives_the_wire(answer):
    assert answer_from_finish(answer.text, finish_from_answer(answer)) == answer


def test_servers_before_and_after_this_one_are_read():
    content = json.loads(finish_from_answer(replace(ANSWER, cached_prompt_tokens=8)))
    assert answer_from_finish(ANSWER.text, json.dumps({**content, "later": 3})) == replace(
        ANSWER, cached_prompt_tokens=8
    )
    del content["cached_prompt_tokens"]
    assert answer_from_finish(ANSWER.text, json.dumps(content)) == ANSWER


def test_what_a_later_server_adds_to_any_object_is_ignored():
    later = {"later": 3}
    answer = replace(ANSWER, logprobs=LOGPROBS, others=(OTHER,), ranking=RANKED)
    content = json.loads(finish_from_answer(answer)) | later | {"text": "another"}
    content["timing"] |= later
    for name in ("logprobs", "others", "ranking"):
        content[name] = [one | later for one in content[name]]
    assert answer_from_finish(answer.text, json.dumps(content)) == answer


@pytest.mark.parametrize("finish", ["", "[]", "{}", "null", '{"timing": 3}'])
def test_a_damaged_finish_is_said(finish):
    with pytest.raises(ContractError, match="finish of the answer is damaged"):
        answer_from_finish("text", finish)


@pytest.mark.parametrize(
    "options",
    [
        GenerationOptions(),
        GenerationOptions(max_new_tokens=5, min_new_tokens=2),
        GenerationOptions(temperature=0.7, top_k=4, top_p=0.5, repetition_penalty=1.5, seed=2**62),
        GenerationOptions(stop=("\n", "###", '"', "é")),
        GenerationOptions(min_p=0.25, n=3, temperature=1.0, logprobs=0),
        GenerationOptions(stop_token_ids=(3, 5), banned_words=("red", '"'), no_repeat_ngram_size=3),
        GenerationOptions(logit_bias={3: -1.5, 17: 100}, logprobs=5),
        GenerationOptions(num_beams=5, n=2, length_penalty=0.0, early_stopping=True),
        GenerationOptions(num_beams=2, length_penalty=-1.0, early_stopping="never"),
        GenerationOptions(candidates=("a 7", '"', "größe"), length_penalty=0.5),
        GenerationOptions(candidates=("a 7",), truncation="left", max_instruction=128),
        GenerationOptions(max_length=256, min_length=1, penalty_scope="answer", echo=True),
    ],
)
def test_options_survive_the_wire(options):
    parameters = parameters_from_options(options)
    assert options_from_parameters(parameters) == options
    # As Triton hands them over, and as the one-answer model sends them on:
    as_json = json.dumps(parameters)
    assert options_from_parameters(json.loads(as_json)) == options
    assert options_from_parameters(unpacked({PACKED: as_json})) == options


COMPANIONS = {
    "n": {"temperature": 1.0},
    "max_instruction": {"truncation": "left"},
}
"""What an option is not valid without."""


def other_value(option):
    """A value that is not the default, as JSON has it."""
    match option.kind:
        case Integer(least, _):
            return least + 1
        case Number(_, most, _):
            return most / 2
        case Choice(values):
            return next(value for value in values if value != option.default)
    return json.loads(option.example)


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_every_option_survives_the_wire_alone(option):
    value = other_value(option)
    options = GenerationOptions.from_mapping(
        {option.name: value, **COMPANIONS.get(option.name, {})}
    )
    assert getattr(options, option.name) != option.default
    parameters = parameters_from_options(options)
    travels = parameters[option.name]
    assert (json.loads(travels) if option.kind.json else travels) == value
    assert isinstance(travels, bool | int | float | str)
    assert options_from_parameters(json.loads(json.dumps(parameters))) == options


@pytest.mark.parametrize(
    "option", [one for one in OPTIONS.values() if one.kind.json], ids=lambda one: one.name
)
def test_what_travels_as_json_is_named_with_an_example_that_is_taken(option):
    example = {option.name: option.example}
    assert options_from_parameters(example).to_mapping() == {
        option.name: json.loads(option.example)
    }
    for value in (3, True, "3", "no JSON", '"a"', "null"):
        with pytest.raises(OptionError) as caught:
            options_from_parameters({option.name: value})
        assert str(caught.value).endswith(f", as JSON in a string, such as {option.example}")


def test_only_what_differs_from_the_default_travels():
    assert parameters_from_options(GenerationOptions(top_k=3)) == {"top_k": 3}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"top_p": 1.5}, r"top_p is 1\.5; expected a number above 0, at most 1"),
        ({"temprature": 1}, "no option 'temprature'. Did you mean 'temperature'"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected an integer, 1 or more"),
        ({"max_new_tokens": 1.5}, "max_new_tokens is 1.5; expected an integer"),
        ({"max_new_tokens": "5"}, "max_new_tokens is '5'; expected an integer"),
        (
            {"stop": "###"},
            "stop is '###'; expected a list of at most 1000 non-empty strings, as JSON in a",
        ),
        ({"stop": '{"a": 1}'}, "expected a list of .*, as JSON in a string"),
        ({"stop": "[1]"}, "expected a list of at most 1000 non-empty strings"),
        ({"stop": 4}, r'expected a list of .*, as JSON in a string, such as \["\\n", "###"\]'),
        (
            {"logit_bias": "[1]"},
            r"logit_bias is '\[1\]'; expected an object of .*, as JSON in a string",
        ),
        ({"logit_bias": '{"a": 1}'}, "a token in logit_bias is 'a'; expected an integer"),
        (
            {"logit_bias": '{"3": 101}'},
            "logit_bias of 3 is 101; expected a number from -100 to 100",
        ),
        ({"stop_token_ids": "[-1]"}, "a token in stop_token_ids is -1; expected an integer"),
        (
            {"banned_words": '[""]'},
            "banned_words is .*; expected a list of at most 1000 non-empty strings",
        ),
        ({"min_p": 2}, "min_p is 2; expected a number from 0 to 1"),
        ({"logprobs": 101}, "logprobs is 101; expected an integer from 0 to 100"),
        ({"n": 2}, "n is 2; with temperature 0 all answers would be the same"),
        ({"n": 0}, "n is 0; expected an integer from 1 to 64"),
        ({"num_beams": 2, "n": 3}, "n is 3; expected at most num_beams, 2"),
        ({"num_beams": 2, "temperature": 1.0}, "a beam search samples nothing"),
        ({"num_beams": 2, "logprobs": 1}, "logprobs is not known of a beam search"),
        ({"candidates": "red"}, "candidates is 'red'; expected a list of .* strings, as JSON in a"),
        ({"candidates": '["a"]', "num_beams": 2}, "candidates are given, and num_beams; a ranking"),
        ({"max_length": 0}, "max_length is 0; expected an integer, 1 or more"),
        ({"max_length": 9, "max_new_tokens": 3}, "max_length is 9 and max_new_tokens 3; they are"),
        ({"min_length": 9, "min_new_tokens": 3}, "min_length is 9 and min_new_tokens 3; they are"),
        ({"min_length": 9, "max_length": 8}, "min_length is 9; expected at most max_length, 8"),
        ({"penalty_scope": "prompt"}, "penalty_scope is 'prompt'; expected 'all' or 'answer'"),
        ({"truncation": "middle"}, "truncation is 'middle'; expected '', 'left' or 'right'"),
        ({"max_instruction": 8}, "max_instruction is 8, and truncation is not given"),
        (
            {"truncation": "left", "max_instruction": 0},
            "max_instruction is 0; expected an integer, 1 or",
        ),
        ({"echo": "yes"}, "echo is 'yes'; expected true or false"),
        ({"early_stopping": "soon"}, "early_stopping is 'soon'; expected true, false or 'never'"),
        ({PACKED: "no JSON"}, "options_json is 'no JSON'; expected a JSON object"),
        ({PACKED: '{"topp": 1}'}, "Did you mean 'top_p'"),
    ],
)
def test_a_bad_option_is_named_with_its_range(parameters, message):
    with pytest.raises(OptionError, match=message):
        options_from_parameters(unpacked(parameters))


def test_tritons_own_parameters_are_no_options():
    given = {
        "triton_enable_empty_final_response": True,
        "binary_data_output": True,
        "stream": False,
        "priority_class": "bulk",
    }
    assert options_from_parameters(given) == GenerationOptions()


def test_a_request_is_interactive_unless_it_says_otherwise():
    assert priority_from_parameters({}) == "interactive"
    assert priority_from_parameters({"priority_class": "bulk"}) == "bulk"
    assert priority_from_parameters(unpacked({PACKED: '{"priority_class": "bulk"}'})) == "bulk"
    for wrong in ("urgent", "", 1, True, None):
        with pytest.raises(OptionError, match='expected "interactive" or "bulk"'):
            priority_from_parameters({"priority_class": wrong})


def test_stream_is_on_unless_the_request_says_otherwise():
    assert stream_from_parameters({}) is True
    assert stream_from_parameters({"stream": False}) is False
    with pytest.raises(OptionError, match="stream is 'no'; expected true or false"):
        stream_from_parameters({"stream": "no"})


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OptionError("top_p is 3"), "INVALID_ARG"),
        (InputError("the prompt is empty: really"), "INVALID_ARG"),
        (ContractError("'pixels' is float32"), "INVALID_ARG"),
        (DeadlineError("late"), "INTERNAL"),
        (QueueFullError("256 wait"), "UNAVAILABLE"),
        (EngineError("broke\nin two lines"), "INTERNAL"),
    ],
)
def test_an_error_keeps_its_kind_whatever_triton_puts_before_it(error, status):
    text = f"[request id: 7] in ensemble 'instructblip', {text_from_error(error)}"
    read = error_from_text(text)
    assert type(read) is type(error)
    assert str(read) == str(error)
    assert status_from_error(error) == status


def test_a_fault_of_ours_travels_as_an_engines_error():
    read = error_from_text(text_from_error(ZeroDivisionError("division by zero")))
    assert type(read) is EngineError
    assert str(read) == "ZeroDivisionError: division by zero"


SESSION_ERROR = """\
[ONNXRuntimeError] : 1 : FAIL : Load model from /srv/models/qformer/1/model.onnx failed:
/onnxruntime_src/core/graph/model.cc:149 onnxruntime::Model::Model() bad opset
Stacktrace: 0x7f"""


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            RuntimeError(SESSION_ERROR),
            "EngineError: RuntimeError: [ONNXRuntimeError] : 1 : FAIL : Load model from … failed:\n"
            "… onnxruntime::Model::Model() bad opset",
        ),
        (
            FileNotFoundError(2, "No such file", "/srv/a b/tokenizer.json"),
            "EngineError: FileNotFoundError: [Errno 2] No such file: '… b/tokenizer.json'",
        ),
        (
            EngineError(
                'no room in iblip-triton-ab12_3 for 4/5 of\n  File "x.py", line 3\n    f()'
            ),
            "EngineError: no room in … for 4/5 of",
        ),
        (ContractError("a\nin /srv/x.json"), "ContractError: a\nin …"),
    ],
)
def test_a_callers_text_holds_no_path_region_or_stack_and_the_log_has_all(error, text, caplog):
    assert text_from_error(error) == text
    assert str(error) in caplog.text


def test_what_a_caller_wrote_is_told_as_it_is(caplog):
    error = InputError("the prompt is '/tmp/x\ny'")
    assert text_from_error(error) == f"InputError: {error}"
    assert not caplog.text


def test_a_text_of_tritons_own_is_no_error_of_ours():
    assert error_from_text("unexpected shape for input 'pixels'") is None


def test_a_prompt_is_one_string_of_utf8():
    import numpy as np

    assert prompt_from_tensor(np.array(["é".encode()], dtype=object), 2) == "é"
    with pytest.raises(InputError, match="not UTF-8"):
        prompt_from_tensor(np.array([b"\xff"], dtype=object), 2)
    with pytest.raises(InputError, match="the prompt has 3 bytes; expected at most 2"):
        prompt_from_tensor(np.array([b"abc"], dtype=object), 2)
    with pytest.raises(InputError, match=r"shape \[2\]; expected one string"):
        prompt_from_tensor(np.array([b"a", b"b"], dtype=object), 2)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("in ensemble 'visual_prompt', InputError: the picture", InputError),
        ("Request timeout expired", DeadlineError),
        ("in ensemble 'visual_prompt', Exceeds maximum queue size", QueueFullError),
        ("Stub process 'qformer_0_0' is not healthy.", EngineError),
    ],
)
def test_what_triton_says_of_a_step_has_a_kind(text, kind):
    assert type(error_from_chain(text)) is kind


CONTRACT = ServerContract(
    preprocessing=Preprocessing(height=64, width=64, resample="BICUBIC"),
    limits=Limits(
        max_instruction=None,
        images=1,
        max_length=96,
        num_query_tokens=8,
        default_max_new_tokens=32,
        slots=4,
        queue=16,
        max_prompt_bytes=65_536,
        max_option_bytes=262_144,
        max_logprobs=100_000,
    ),
    build=ServedBuild(
        name="small",
        family="blip2",
        language_model="opt",
        precision={"vision_encoder": "fp16"},
        created="2026-11-28T00:00:00+00:00",
    ),
)


def test_a_contract_survives_the_wire():
    assert ServerContract.from_parameters(CONTRACT.to_parameters()) == CONTRACT


@pytest.mark.parametrize("name", ["preprocessing", "limits", "build"])
@pytest.mark.parametrize(
    ("value", "found"), [(None, "missing"), ("", "is ;"), ("[1]", r"is \[1\];"), ("{", r"is \{;")]
)
def test_a_contract_without_one_of_its_parameters_is_refused(name, value, found):
    parameters = {**CONTRACT.to_parameters(), name: value}
    if value is None:
        del parameters[name]
    with pytest.raises(ContractError, match=f"the parameter {name} of .* {found}.*expected a JSON"):
        ServerContract.from_parameters(parameters)


@pytest.mark.parametrize("missing", ["name", "family", "language_model", "precision", "created"])
def test_a_build_that_lacks_a_fact_is_refused(missing):
    facts = {name: value for name, value in vars(CONTRACT.build).items() if name != missing}
    parameters = {**CONTRACT.to_parameters(), "build": json.dumps(facts)}
    with pytest.raises(
        ContractError,
        match=r"parameter build of the server's model config is \{.*\}; expected a JSON object of "
        r"name, family, language_model, precision, created\. Serve a build made by this version, "
        "or install the client that came with the build",
    ):
        ServerContract.from_parameters(parameters)
