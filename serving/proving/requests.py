"""Requests that load a build without being compared: its own questions, or made-up ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import Generation
from iblip.engines.pipeline import Pipeline
from iblip.serving.proving.subject import WITHOUT_QUESTIONS, NothingToMeasureError, Subject


@dataclass(frozen=True, kw_only=True)
class Request:
    """A question, and how it is to be answered.

    Attributes:
        pixels: uint8 `[height, width, 3]`.
        prompt: the question.
        options: fields of `GenerationOptions`.
    """

    pixels: npt.NDArray[np.uint8]
    prompt: str
    options: Mapping[str, Any]

    def submit(self, pipeline: Pipeline) -> Generation:
        """Asks it of an open build."""
        return pipeline.submit(self.pixels, self.prompt, GenerationOptions(**self.options))


def request_of(subject: Subject, index: int, *, tokens: int, exactly: bool = False) -> Request:
    """The request of that number; questions come round again.

    Args:
        subject: the build.
        index: from 0.
        tokens: most tokens of the answer.
        exactly: whether the answer has so many, and does not end before.
    """
    options = {"max_new_tokens": tokens, **({"min_new_tokens": tokens} if exactly else {})}
    try:
        answers = subject.answers("text")
    except NothingToMeasureError:
        settings = subject.manifest.preprocessing
        random = np.random.default_rng(index)
        pixels = random.integers(0, 256, (settings.height, settings.width, 3), dtype=np.uint8)
        prompt = WITHOUT_QUESTIONS[index % len(WITHOUT_QUESTIONS)]
        return Request(pixels=pixels, prompt=prompt, options=options)
    answer = answers[index % len(answers)]
    pixels = subject.references.pixels[answer.images[0]]
    return Request(pixels=pixels, prompt=answer.prompt, options=options)
