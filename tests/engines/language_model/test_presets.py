"""How the originals answer, as options: numbers from their sources, and what overrides them."""

from __future__ import annotations

from typing import Any

import pytest

from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.presets import PRESETS, preset
from iblip.export.errors import OptionError


def test_every_preset_is_valid_and_names_its_source() -> None:
    for found in PRESETS.values():
        assert isinstance(found.with_options({}), GenerationOptions)
        assert found.source


def test_lavis_on_vicuna_answers_with_its_own_defaults() -> None:
    found = preset("lavis", family="instructblip", language_model="llama")
    assert found.with_options({}) == GenerationOptions(
        num_beams=5,
        max_new_tokens=255,  # 256, of which the token that an answer begins with is one
        repetition_penalty=1.5,
        penalty_scope="answer",
        length_penalty=1.0,
        truncation="left",
        max_instruction=128,
        beam_scorer="v4",
    )
    assert found.finished("  a 7 \n") == "a 7"


@pytest.mark.parametrize(
    ("family", "model", "call", "tokens", "penalty", "strip"),
    [
        ("instructblip", "llama", "predict_answers", 9, 0.0, True),
        ("instructblip", "t5", "generate", 256, 1.0, False),
        ("instructblip", "t5", "predict_answers", 10, -1.0, False),
        ("blip2", "opt", "generate", 29, 1.0, True),
        ("blip2", "opt", "predict_answers", 10, 0.0, True),
        ("blip2", "t5", "generate", 30, 1.0, False),
        ("blip2", "t5", "predict_answers", 10, -1.0, False),
    ],
)
def test_the_other_calls_of_lavis(
    family: str, model: str, call: str, tokens: int, penalty: float, strip: bool
) -> None:
    found = preset("lavis", family=family, language_model=model, call=call)
    options = found.with_options({})
    assert (options.max_new_tokens, options.length_penalty) == (tokens, penalty)
    assert options.repetition_penalty == (1.5 if family == "instructblip" else 1.0)
    assert (options.num_beams, found.strip) == (5, strip)


@pytest.mark.parametrize(("family", "model"), [("instructblip", "t5"), ("blip2", "opt")])
@pytest.mark.parametrize("call", ["generate", "predict_answers"])
def test_lavis_tidies_the_texts_of_tokenizers_that_do(family: str, model: str, call: str) -> None:
    """`tidied` is what transformers 4.33.2 makes of it for T5 and GPT-2, though not for LLaMA."""
    text = "it 's 1 , 2 and isn 't done . they 've said ' no ' ! who ?"
    tidied = "it's 1, 2 and isn 't done. they've said'no '! who?"
    assert preset("lavis", family=family, language_model=model, call=call).finished(text) == tidied
    vicuna = preset("lavis", family="instructblip", language_model="llama", call=call)
    assert vicuna.finished(text) == text
    assert preset("hf", family=family, language_model=model).finished(text) == text


def test_minigpt4_keeps_what_comes_after_its_last_turn() -> None:
    found = preset("minigpt4", family="minigpt4", language_model="llama")
    assert found.finished("a ###Assistant: It is a 7. ") == "It is a 7."
    options = found.with_options({})
    assert (options.temperature, options.top_p, options.max_new_tokens) == (1.0, 0.9, 300)
    assert (options.repetition_penalty, options.stop) == (1.05, ("###",))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {}),
        ({"num_beams": 1}, {"num_beams": 1}),  # a default here, and still an override
        ({"max_length": 300}, {"max_length": 300, "max_new_tokens": None}),
        (GenerationOptions(max_length=300), {"max_length": 300, "max_new_tokens": None}),
        (GenerationOptions(n=3, num_beams=4), {"n": 3, "num_beams": 4}),
        (GenerationOptions(), {}),
    ],
)
def test_what_is_given_overrides_the_preset(given: Any, wanted: dict[str, Any]) -> None:
    found = preset("lavis", family="instructblip", language_model="llama")
    made = {**vars(found.with_options({})), **wanted}
    assert vars(found.with_options(given)) == made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"compat": "lavi"}, "compat is 'lavi'; expected one of .* Did you mean 'lavis'"),
        ({"family": "minigpt4"}, "no generate for minigpt4 on llama; it has no such model"),
        (
            {"family": "blip2", "language_model": "opt", "call": "predict_class"},
            "no predict_class for blip2 on opt; it has generate, predict_answers",
        ),
    ],
)
def test_what_no_original_has_is_refused(arguments: dict[str, str], message: str) -> None:
    known = {"compat": "lavis", "family": "instructblip", "language_model": "llama"}
    made: dict[str, Any] = {**known, **arguments}
    with pytest.raises(OptionError, match=message):
        preset(made.pop("compat"), **made)
