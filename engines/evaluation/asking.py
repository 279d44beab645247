"""Asks a build what its references say, and reads the answer as they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import Answer, Generation
from iblip.engines.pipeline import Pipeline

PLACES = 9
"""Decimal places of a recorded log-probability, in nats."""


def submit(
    pipeline: Pipeline,
    pixels: npt.NDArray[Any],
    images: Sequence[int],
    prompt: str,
    options: Mapping[str, Any],
) -> Generation:
    """Asks a build a question; the answer comes as it is generated.

    Args:
        pipeline: the open build.
        pixels: uint8 `[images, height, width, 3]`.
        images: indices of those that the question is about.
        prompt: the question.
        options: fields of `GenerationOptions`, as JSON has them.
    """
    shown = pixels[images[0]] if len(images) == 1 else pixels[list(images)]
    return pipeline.submit(shown, prompt, GenerationOptions.from_mapping(options))


def first_tokens(answer: Answer) -> tuple[tuple[int, float], ...]:
    """The most likely first tokens and their rounded log-probabilities; empty if not asked for."""
    if not answer.logprobs:
        return ()
    return tuple((token, round(value, PLACES)) for token, value in answer.logprobs[0].top)


def ranking(answer: Answer) -> tuple[float, ...]:
    """Each candidate's log-probability, rounded, in the order of the request."""
    by_index = sorted(answer.ranking, key=lambda candidate: candidate.index)
    return tuple(round(candidate.logprob, PLACES) for candidate in by_index)
