"""Generation options as keyword arguments: `ask(image, prompt, max_new_tokens=30)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from iblip.engines.language_model.options import GenerationOptions
from iblip.export.errors import OptionError
from iblip.export.messages import shown

Options = GenerationOptions | Mapping[str, Any]
"""How to generate. A mapping can override a preset even with a value that is a default here."""


class GenerationKeywords(TypedDict, total=False):
    """The fields of `GenerationOptions`, which says what each one is."""

    max_new_tokens: int | None
    min_new_tokens: int
    max_length: int | None
    min_length: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    repetition_penalty: float
    no_repeat_ngram_size: int
    penalty_scope: Literal["all", "answer"]
    logit_bias: Mapping[int, float]
    banned_words: Sequence[str]
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    logprobs: int | None
    n: int
    num_beams: int
    length_penalty: float | None
    early_stopping: bool | Literal["never"]
    beam_scorer: Literal["v5", "v4"]
    candidates: Sequence[str]
    json_schema: Mapping[str, Any] | None
    truncation: Literal["", "left", "right"]
    max_instruction: int | None
    echo: bool


def options_with_keywords(options: Options | None, keywords: Mapping[str, Any]) -> Options:
    """Returns options, overridden by keywords. The names of a mapping are checked where it is used.

    Args:
        options: an object or a mapping; `None` is all defaults.
        keywords: options by name.

    Raises:
        OptionError: `options` is of another type.
    """
    if options is None:
        options = {}
    if not isinstance(options, GenerationOptions | Mapping):
        raise OptionError(
            f"options is {shown(options)}; expected GenerationOptions, or a mapping by name"
        )
    if not keywords:
        return options
    given = options.to_mapping() if isinstance(options, GenerationOptions) else options
    return {**given, **keywords}
