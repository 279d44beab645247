import pytest

from iblip.export.errors import OptionError
from iblip.export.precision import BETWEEN, COMPONENTS, DTYPES, PrecisionPolicy


def words(text):
    return PrecisionPolicy.parse(text).to_json()


def test_one_word_is_for_every_component():
    assert words("fp16") == dict.fromkeys(COMPONENTS, "fp16")


def test_int4_is_for_the_language_model_alone():
    policy = {"vision_encoder": "fp32", "qformer": "fp32", "language_model": "int4"}
    assert words("int4") == words("language_model=int4") == policy


@pytest.mark.parametrize("word", ["fp8", "int8-fp16"])
def test_static_eight_bits_leave_the_language_model_at_fp16(word):
    assert words(word) == {"vision_encoder": word, "qformer": word, "language_model": "fp16"}


def test_a_policy_leaves_the_rest_at_fp32():
    assert words("vision_encoder=fp16") == {
        "vision_encoder": "fp16",
        "qformer": "fp32",
        "language_model": "fp32",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "fp61",
            "no precision 'fp61'; known: fp32, fp16, bf16, int8, int4, int8-fp16, int8-bf16,"
            " int4-fp16, int4-bf16, fp8, lavis. Did",
        ),
        ("vision=fp16", "no component 'vision'.*Did you mean 'vision_encoder'"),
        ("qformer=fp16,qformer=fp32", "qformer is named twice"),
        ("qformer=", "no precision ''"),
        ("vision_encoder=int4", "vision_encoder cannot be int4, only language_model can"),
        ("qformer=int4-bf16", "qformer cannot be int4-bf16, only language_model can"),
        ("vision_encoder=int8-bf16", "vision_encoder cannot be int8-bf16, only language_model can"),
        ("language_model=fp8", "language_model cannot be fp8, only vision_encoder and qformer can"),
    ],
)
def test_nonsense_is_refused_by_name(text, message):
    with pytest.raises(OptionError, match=rf"--precision {text}: .*{message}"):
        PrecisionPolicy.parse(text)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"qformer": "fp61"}, "no precision 'fp61'"),
        ({"vision_encoder": "int4"}, "vision_encoder cannot be int4, only language_model can"),
    ],
)
def test_no_policy_holds_nonsense(given, message):
    with pytest.raises(OptionError, match=message):
        PrecisionPolicy(**given)


def test_the_originals_mixture_depends_on_its_language_model():
    policy = PrecisionPolicy.parse("lavis")
    assert policy.to_json() == {
        "vision_encoder": "lavis",
        "qformer": "fp32",
        "language_model": "lavis",
    }
    assert policy.resolve("llama") == PrecisionPolicy(vision_encoder="lavis", language_model="fp16")
    assert policy.resolve("t5").language_model == "bf16"
    assert policy.resolve("t5").dtype("language_model") == "bfloat16"
    assert PrecisionPolicy.parse("int4").resolve("t5") == PrecisionPolicy.parse("int4")


def test_small_weights_get_sixteen_bits_around_them_on_a_gpu():
    policy = PrecisionPolicy.parse("vision_encoder=fp16,language_model=int4")
    assert policy.in_halves("llama").language_model == "int4-fp16"
    assert policy.in_halves("llama").dtype("language_model") == "float16"
    assert policy.in_halves("t5").language_model == "int4-bf16"  # as the original
    assert PrecisionPolicy.parse("int8").in_halves("opt").to_json() == {
        "vision_encoder": "int8",
        "qformer": "int8",
        "language_model": "int8-fp16",
    }
    for text in ("fp32", "fp16", "int4-bf16", "fp8"):
        assert PrecisionPolicy.parse(text).in_halves("t5") == PrecisionPolicy.parse(text)


@pytest.mark.parametrize(
    ("word", "other"), [("int4-fp16", "fp16"), ("int4-bf16", "bf16"), ("int8-bf16", "bf16")]
)
def test_small_weights_and_a_dtype_are_that_dtype_for_every_component(word, other):
    assert words(word) == {"vision_encoder": other, "qformer": other, "language_model": word}


def test_what_passes_between_components_is_never_bfloat16():
    assert set(BETWEEN.values()) == {"float32", "float16"}


@pytest.mark.parametrize("word", DTYPES)
def test_a_policy_as_text_is_as_short_as_it_can_be(word):
    policy = PrecisionPolicy.parse(word)
    assert str(policy) == word
    spelled = ",".join(f"{component}={word}" for component, word in policy.to_json().items())
    assert str(PrecisionPolicy.parse(spelled)) == word


def test_a_mixture_as_text_names_every_component_and_is_read_back():
    policy = PrecisionPolicy.parse("language_model=int8,vision_encoder=fp16")
    assert str(policy) == "vision_encoder=fp16,qformer=fp32,language_model=int8"
    assert PrecisionPolicy.parse(str(policy)) == policy
