import pytest

from iblip.export.errors import OptionError
from iblip.export.precision import of_language_model, parse_precision


def test_one_word_is_for_every_component():
    assert set(parse_precision("fp16").values()) == {"fp16"}


def test_int4_is_for_the_language_model_alone():
    policy = {"vision_encoder": "fp32", "qformer": "fp32", "language_model": "int4"}
    assert parse_precision("int4") == parse_precision("language_model=int4") == policy


@pytest.mark.parametrize("word", ["fp8", "int8-fp16"])
def test_static_eight_bits_leave_the_language_model_at_fp16(word):
    policy = {"vision_encoder": word, "qformer": word, "language_model": "fp16"}
    assert parse_precision(word) == policy


def test_a_policy_leaves_the_rest_at_fp32():
    assert parse_precision("vision_encoder=fp16") == {
        "vision_encoder": "fp16",
        "qformer": "fp32",
        "language_model": "fp32",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "fp61",
            "no precision 'fp61'; known: fp32, fp16, bf16, int8, int4, int8-fp16, fp8, lavis. Did",
        ),
        ("vision=fp16", "no component 'vision'.*Did you mean 'vision_encoder'"),
        ("qformer=fp16,qformer=fp32", "qformer is named twice"),
        ("qformer=", "no precision ''"),
        ("vision_encoder=int4", "vision_encoder cannot be int4, only language_model can"),
        ("language_model=fp8", "language_model cannot be fp8, only vision_encoder and qformer can"),
    ],
)
def test_nonsense_is_refused_by_name(text, message):
    with pytest.raises(OptionError, match=message):
        parse_precision(text)


def test_the_originals_mixture_depends_on_its_language_model():
    policy = parse_precision("lavis")
    assert policy == {"vision_encoder": "lavis", "qformer": "fp32", "language_model": "lavis"}
    assert of_language_model(policy, "llama")["language_model"] == "fp16"
    assert of_language_model(policy, "t5")["language_model"] == "bf16"
    assert of_language_model(parse_precision("int4"), "t5") == parse_precision("int4")
