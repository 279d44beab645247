"""LAVIS's prompts: templates filled with a question, OCR tokens, choices and context.

Pure functions of text. Source: salesforce/LAVIS, `lavis/models/blip2_models/`,
`blip2_vicuna_instruct.py` and `blip2_t5_instruct.py` (the two are alike here): `generate`,
`predict_answers`, `_predict_class`. A placeholder is `{}`, as in Python's `str.format`.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_lowercase
from typing import Any

from iblip.export.errors import InputError

MAX_OCR_TOKENS = 30


def ocr_text(tokens: Sequence[str]) -> str:
    """The first 30 OCR tokens: `"stop, main st"`."""
    return ", ".join(tokens[:MAX_OCR_TOKENS])


def choices_text(choices: Sequence[str]) -> str:
    """Options of a multiple-choice question: `"(a) a cat (b) a dog"`.

    Raises:
        InputError: there are more choices than letters.
    """
    if len(choices) > len(ascii_lowercase):
        raise InputError(
            f"there are {len(choices)} choices; expected at most {len(ascii_lowercase)}"
        )
    return " ".join(
        f"({letter}) {text}" for letter, text in zip(ascii_lowercase, choices, strict=False)
    )


def caption_prompt(template: str, ocr_tokens: Sequence[str] | None = None) -> str:
    """The prompt of `generate`, with OCR tokens in its placeholder if it has one."""
    if ocr_tokens is None or "{}" not in template:
        return template
    return fill_template(template, ocr_text(ocr_tokens))


def question_prompt(
    template: str,
    question: str,
    *,
    ocr_tokens: Sequence[str] | None = None,
    choices: Sequence[str] | None = None,
) -> str:
    """The prompt of `predict_answers`.

    Args:
        template: if empty, the prompt is the question itself. One placeholder takes the question;
            two take the OCR tokens and the question, or the question and the choices.
        question: as asked.
        ocr_tokens: text read in the image.
        choices: answers to choose from.

    Raises:
        InputError: the template has two placeholders, but neither OCR tokens nor choices are given;
            or it has placeholders that cannot be filled.
    """
    if not template:
        return question
    if template.count("{}") != 2:
        return fill_template(template, question)
    if ocr_tokens is not None:
        return fill_template(template, ocr_text(ocr_tokens), question)
    if choices is not None:
        return fill_template(template, question, choices_text(choices))
    raise InputError(
        f"the prompt {template!r} has two placeholders; expected ocr_tokens or choices for one "
        "of them"
    )


def class_prompt(
    template: str,
    text_input: str | Sequence[str] | None = None,
    *,
    context: str = "",
    history: str = "",
    caption: str = "",
) -> str:
    """The prompt of `predict_class`: the filled template, preceded by what else is known.

    Args:
        template: the instruction, with a placeholder for each text of `text_input`.
        text_input: the texts that fill it.
        context: of a question (ScienceQA).
        history: of a dialogue (Visual Dialog).
        caption: of the image.

    Raises:
        InputError: the template has placeholders that cannot be filled.
    """
    prompt = template
    if text_input is not None:
        texts = [text_input] if isinstance(text_input, str) else list(text_input)
        prompt = fill_template(template, *texts)
    if context:
        prompt = f"context: {context}. {prompt}"
    if history:
        prompt = f"dialog history: {history}\n{prompt}"
    if caption:
        prompt = f'This image has the caption "{caption}". {prompt}'
    return prompt


def fill_template(template: str, *texts: Any) -> str:
    """`template.format(*texts)`.

    Raises:
        InputError: it has more placeholders than there are texts, or stray braces.
    """
    try:
        return template.format(*texts)
    except (IndexError, KeyError, ValueError, AttributeError) as error:
        raise InputError(
            f"the prompt {template!r} cannot be filled with {len(texts)} texts ({error!r}); "
            "expected '{}' for each, and '{{' and '}}' for braces"
        ) from error
