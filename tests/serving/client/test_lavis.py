"""LAVIS's prompts and calls, against strings and orders that follow from its source by hand."""

from __future__ import annotations

import numpy as np
import pytest

from iblip.engines.language_model.option_table import OPTIONS, options_of_lavis
from iblip.engines.language_model.types import Answer, Completion, RankedCandidate, Timing
from iblip.export.artifact.manifest import Preprocessing
from iblip.export.errors import InputError, OptionError
from iblip.serving.client.lavis_batches import (
    GenerateArguments,
    PredictArguments,
    answers_batch,
    class_batch,
    generate_batch,
    ranks_from_answer,
)
from iblip.serving.client.lavis_prompts import (
    caption_prompt,
    choices_text,
    class_prompt,
    ocr_text,
    question_prompt,
)
from iblip.serving.wire.contract import Limits, ServedBuild, ServerContract

WORDS = [f"w{index}" for index in range(40)]
FIRST_30 = (
    "w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11, w12, w13, w14, w15, w16, w17, w18, w19, "
    "w20, w21, w22, w23, w24, w25, w26, w27, w28, w29"
)


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (ocr_text(WORDS), FIRST_30),
        (ocr_text([]), ""),
        (choices_text(["a cat", "a dog", "none"]), "(a) a cat (b) a dog (c) none"),
        (caption_prompt("OCR tokens: {}. A caption:", ["stop", "st"]),
         "OCR tokens: stop, st. A caption:"),
        (caption_prompt("A caption:", ["stop"]), "A caption:"),
        (caption_prompt("OCR tokens: {}."), "OCR tokens: {}."),
        (question_prompt("", "what {}?"), "what {}?"),
        (question_prompt("Question: {} Short answer:", "how many?"),
         "Question: how many? Short answer:"),
        # One place: the question, whatever else is known.
        (question_prompt("Question: {}", "how?", ocr_tokens=["a"], choices=["b"]),
         "Question: how?"),
        (question_prompt("OCR tokens: {}. Question: {}", "what brand?", ocr_tokens=["ace", "co"]),
         "OCR tokens: ace, co. Question: what brand?"),
        (question_prompt("Question: {} Options: {}. Answer:", "which?", choices=["x", "y"]),
         "Question: which? Options: (a) x (b) y. Answer:"),
        # OCR tokens go first where there are both.
        (question_prompt("{} | {}", "q", ocr_tokens=["o"], choices=["c"]), "o | q"),
        (class_prompt("Is it {}?", "a cat"), "Is it a cat?"),
        (class_prompt("{} or {}?", ["a cat", "a dog"]), "a cat or a dog?"),
        (class_prompt("{}"), "{}"),
        (class_prompt("Which?", context="a zoo", history="who? me", caption="a cage"),
         'This image has the caption "a cage". dialog history: who? me\ncontext: a zoo. Which?'),
    ],
)  # fmt: skip
def test_prompts_are_lavis_own(made, wanted):
    assert made == wanted


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: question_prompt("{} {}", "q"),
            "has two placeholders; expected ocr_tokens or choices",
        ),
        (lambda: question_prompt("{} {} {}", "q"), "cannot be filled with 1 texts"),
        (lambda: question_prompt("{name}", "q"), "cannot be filled with 1 texts"),
        (lambda: choices_text(["x"] * 27), "there are 27 choices; expected at most 26"),
    ],
)
def test_a_template_that_does_not_fit_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def contract(family="instructblip", language_model="llama"):
    limits = Limits(**dict.fromkeys(Limits.__dataclass_fields__, 8))
    return ServerContract(
        preprocessing=Preprocessing(height=8, width=8, resample="BICUBIC"),
        limits=limits,
        build=ServedBuild(
            name="small", family=family, language_model=language_model, precision={}, created=""
        ),
    )


IMAGE = np.zeros((8, 8, 3), np.uint8)


def test_generate_asks_once_an_image_with_lavis_defaults():
    samples = {
        "image": ["a.png", "b.png"],
        "prompt": "Describe: {}",
        "ocr_tokens": [["x", "y"], []],
    }
    batch = generate_batch(contract(), samples, {})
    assert [one.prompt for one in batch.questions] == ["Describe: x, y", "Describe: "]
    assert [one.image for one in batch.questions] == samples["image"]
    options = batch.questions[0].options
    assert (options.num_beams, options.max_new_tokens, options.min_new_tokens) == (5, 255, 0)
    assert (options.repetition_penalty, options.penalty_scope) == (1.5, "answer")


def test_arguments_that_are_options_are_called_in_the_table_as_in_lavis():
    generate = options_of_lavis("generate").keys()
    assert generate == GenerateArguments.__annotations__.keys() - {"use_nucleus_sampling"}
    without_effect = {"prompt", "inference_method", "num_ans_candidates", "answer_list"}
    predict = options_of_lavis("predict_answers")
    assert predict.keys() == PredictArguments.__annotations__.keys() - without_effect
    assert predict["max_len"] == options_of_lavis("generate")["max_length"] == "max_new_tokens"
    assert {name for option in OPTIONS.values() for name in option.lavis} == {
        "generate", "predict_answers", "predict_class", "init_tokenizer", "__init__"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (
            {"num_beams": 3, "max_len": 12, "min_len": 4, "length_penalty": -1.0},
            {"num_beams": 3, "max_new_tokens": 11, "min_new_tokens": 3, "length_penalty": -1.0},
        ),
        ({"num_ans_candidates": 9, "inference_method": "rank"}, {"max_new_tokens": 9, "n": 1}),
    ],
)
def test_predict_answers_arguments_become_options(arguments, wanted):
    samples = {"image": IMAGE, "text_input": "What?"}
    (question,) = answers_batch(contract(), samples, arguments).questions
    assert {name: getattr(question.options, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("model", "arguments", "wanted"),
    [
        ("llama", {"max_length": 30, "min_length": 8}, {"max_new_tokens": 29, "min_new_tokens": 7}),
        ("t5", {"max_length": 30, "min_length": 8}, {"max_new_tokens": 30, "min_new_tokens": 7}),
        ("t5", {"num_captions": 3}, {"n": 3, "num_beams": 5}),
        ("t5", {"num_beams": 1, "repetition_penalty": 1.0}, {"repetition_penalty": 1.0}),
        # Without sampling neither counts, as there.
        ("llama", {"temperature": 0.5, "top_p": 0.5}, {"temperature": 0.0, "top_p": 1.0}),
        ("llama", {"use_nucleus_sampling": True, "num_beams": 1, "num_captions": 2},
         {"temperature": 1.0, "top_p": 0.9, "n": 2, "num_beams": 1}),
    ],
)  # fmt: skip
def test_generates_arguments_become_options(model, arguments, wanted):
    samples = {"image": IMAGE, "prompt": "What?"}
    (question,) = generate_batch(contract(language_model=model), samples, arguments).questions
    assert {name: getattr(question.options, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("model", "arguments", "tokens", "penalty"),
    [
        ("llama", {}, 9, 0.0),
        ("t5", {}, 10, -1.0),
        ("llama", {"max_len": 20, "length_penalty": 1, "num_ans_candidates": 3}, 19, 1.0),
    ],
)
def test_predict_answers_fills_the_prompt(model, arguments, tokens, penalty):
    samples = {"image": [IMAGE], "text_input": ["how many?"], "choices": [["one", "two"]]}
    prompt = {"prompt": "Question: {} Options: {}."}
    made = answers_batch(contract(language_model=model), samples, {**prompt, **arguments})
    (question,) = made.questions
    assert question.prompt == "Question: how many? Options: (a) one (b) two."
    options = question.options
    assert (options.max_new_tokens, options.length_penalty) == (tokens, penalty)


def answer(text="", prompt_tokens=20, others=(), **fields):
    timing = Timing(vision_s=0, queue_s=0, prefill_s=0, decode_s=0)
    finish = {"finish_reason": "eos", "completion_tokens": 1, "token_ids": (1,)}
    made = tuple(Completion(text=other, **finish) for other in others)
    return Answer(
        text=text,
        prompt_tokens=prompt_tokens,
        seed=None,
        timing=timing,
        others=made,
        **{**finish, **fields},
    )


@pytest.mark.parametrize(
    ("model", "wanted"), [("llama", ["a", "b", "c"]), ("t5", [" a", "b ", "c"])]
)
def test_texts_are_in_lavis_order_and_trimmed_on_vicuna_alone(model, wanted):
    samples = {"image": [IMAGE, IMAGE], "prompt": ["One?", "Two?"]}
    batch = generate_batch(contract(language_model=model), samples, {})
    answers = [answer(" a", others=["b "]), answer("c")]
    texts = batch.result(answers)
    assert texts == wanted
    assert texts.answers == tuple(answers)


def ranked(*pairs):
    """An answer whose candidates have these sums and numbers of tokens."""
    made = [
        RankedCandidate(
            index=i, text=str(i), token_ids=(1,) * count, logprob=logprob, score=logprob
        )
        for i, (logprob, count) in enumerate(pairs)
    ]
    return answer(ranking=tuple(sorted(made, key=lambda one: -one.score)))


def test_ranks_are_by_losses_of_lavis():
    # In one part all sums are divided alike, in two parts 9.0 by 20 + 2 - 1, and 9.5 by 20 + 9 - 1.
    found = ranked((-9.0, 2), (-12.0, 1), (-9.5, 9), (-20.0, 1), (-30.0, 3))
    assert ranks_from_answer(found, 1, 20) == [0, 2, 1, 3, 4]
    assert ranks_from_answer(found, 2, 20) == [2, 0, 1, 3, 4]
    assert ranks_from_answer(found, 2, None) == [0, 2, 1, 3, 4]


def test_predict_class_ranks_each_images_candidates():
    samples = {"image": [IMAGE, IMAGE], "prompt": "Is it {}?", "text_input": ["red", "big"]}
    batch = class_batch(contract(), samples, [["yes", "no"], ["no", "maybe"]], 1)
    assert [one.prompt for one in batch.questions] == ["Is it red?", "Is it big?"]
    assert [one.options.candidates for one in batch.questions] == [("yes", "no"), ("no", "maybe")]
    assert batch.questions[0].options.max_instruction == 128
    ranks = batch.result([ranked((-2.0, 1), (-1.0, 1)), ranked((-1.0, 1), (-2.0, 1))])
    assert ranks == [[1, 0], [0, 1]]
    assert len(ranks.answers) == 2


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda c: generate_batch(c, {"prompt": "a"}, {}), InputError,
         "expected 'image' among them"),
        (lambda c: generate_batch(c, {"image": []}, {}), InputError, "samples has no image"),
        (lambda c: generate_batch(c, {"image": [IMAGE], "prompt": ["a", "b"]}, {}), InputError,
         "samples has 2 of 'prompt' and 1 images"),
        (lambda c: generate_batch(c, {"image": IMAGE, "prompt": "a"}, {"num_captions": 6}),
         OptionError, "n is 6; expected at most num_beams, 5"),
        (lambda c: generate_batch(c, {"image": IMAGE, "prompt": "a"}, {"max_length": 1}),
         OptionError, "max_length is 1; LAVIS counts the token .* expected 2 or more"),
        (lambda c: generate_batch(
            c, {"image": IMAGE, "prompt": "a"}, {"use_nucleus_sampling": True}),
         OptionError, "LAVIS would sample among beams, which no engine here does"),
        (lambda c: answers_batch(c, {"image": IMAGE}, {}), InputError, "no 'text_input'"),
        (lambda c: answers_batch(
            c, {"image": IMAGE, "text_input": "a", "apply_lemmatizer": True}, {}),
         InputError, "the client does not lemmatise"),
        (lambda c: class_batch(c, {"image": IMAGE, "prompt": "a"}, [], 1), OptionError,
         "candidates is empty"),
        (lambda c: class_batch(c, {"image": IMAGE, "prompt": "a"}, [[]], 1), OptionError,
         "candidates has no text for image 0"),
        (lambda c: class_batch(c, {"image": IMAGE, "prompt": "a"}, [["a"], ["b"]], 1), OptionError,
         "candidates has 2 lists; expected one an image, 1"),
        (lambda c: class_batch(c, {"image": IMAGE, "prompt": "a"}, ["a", "b"], 3), OptionError,
         "n_segments is 3; expected 1 to 2"),
        (lambda c: class_batch(c, {"image": IMAGE}, ["a"], 1), InputError, "no 'prompt'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call(contract())


def test_blip2_has_no_predict_class():
    samples = {"image": IMAGE, "prompt": "a"}
    with pytest.raises(
        OptionError, match="no predict_class for blip2 on t5; it has generate, pred"
    ):
        class_batch(contract("blip2", "t5"), samples, ["a"], 1)
