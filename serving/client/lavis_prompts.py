"""LAVIS's prompts: a question, OCR tokens, choices and context, put into a template as it does.

Pure functions of text. Source: salesforce/LAVIS, `lavis/models/blip2_models/`,
`blip2_vicuna_instruct.py` and `blip2_t5_instruct.py` (the two are alike here): `generate`,
`predict_answers`, `_predict_class`. A place in a template is `{}`, as Python's `str.format` has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_lowercase
from typing import Any

from iblip.export.errors import InputError

MOST_OCR_TOKENS = 30


def ocr_text(tokens: Sequence[str]) -> str:
    """The first 30 OCR tokens: `"stop, main st"`."""
    return ", ".join(tokens[:MOST_OCR_TOKENS])


def choices_text(choices: Sequence[str]) -> str:
    """Options of a multiple choice: `"(a) a cat (b) a dog"`.

    Raises:
        InputError: there are more than letters.
    """
    if len(choices) > len(ascii_lowercase):
        raise InputError(f"there are {len(choices)} choices; wanted at most {len(ascii_lowercase)}")
    return " ".join(
        f"({letter}) {text}" for letter, text in zip(ascii_lowercase, choices, strict=False)
    )


def caption_prompt(template: str, ocr_tokens: Sequence[str] | None = None) -> str:
    """The prompt of `generate`: with OCR tokens in its place, where it has one."""
    if ocr_tokens is None or "{}" not in template:
        return template
    return filled(template, ocr_text(ocr_tokens))


def question_prompt(
    template: str,
    question: str,
    *,
    ocr_tokens: Sequence[str] | None = None,
    choices: Sequence[str] | None = None,
) -> str:
    """The prompt of `predict_answers`.

    Args:
        template: empty is the question itself; with one place it takes the question; with two, the
            OCR tokens and the question, or the question and the choices.
        question: as asked.
        ocr_tokens: read in the image.
        choices: to choose from.

    Raises:
        InputError: the template has two places, and there is nothing for the second; or it has
            places that nothing fits.
    """
    if not template:
        return question
    if template.count("{}") != 2:
        return filled(template, question)
    if ocr_tokens is not None:
        return filled(template, ocr_text(ocr_tokens), question)
    if choices is not None:
        return filled(template, question, choices_text(choices))
    raise InputError(
        f"the prompt {template!r} has two places; wanted ocr_tokens or choices for one of them"
    )


def class_prompt(
    template: str,
    text_input: str | Sequence[str] | None = None,
    *,
    context: str = "",
    history: str = "",
    caption: str = "",
) -> str:
    """The prompt of `predict_class`: the template filled, then what is known put before it.

    Args:
        template: the instruction, with a place for each text of `text_input`.
        text_input: what goes into it.
        context: of a question (ScienceQA).
        history: of a dialogue (Visual Dialog).
        caption: of the image.

    Raises:
        InputError: the template has places that nothing fits.
    """
    prompt = template
    if text_input is not None:
        texts = [text_input] if isinstance(text_input, str) else list(text_input)
        prompt = filled(template, *texts)
    if context:
        prompt = f"context: {context}. {prompt}"
    if history:
        prompt = f"dialog history: {history}\n{prompt}"
    if caption:
        prompt = f'This image has the caption "{caption}". {prompt}'
    return prompt


def filled(template: str, *texts: Any) -> str:
    """`template.format(*texts)`.

    Raises:
        InputError: it has more places than there are texts, or braces that are no place.
    """
    try:
        return template.format(*texts)
    except (IndexError, KeyError, ValueError, AttributeError) as error:
        raise InputError(
            f"the prompt {template!r} cannot be filled with {len(texts)} texts ({error!r}); wanted "
            "'{}' for each, and '{{' and '}}' for braces"
        ) from error
