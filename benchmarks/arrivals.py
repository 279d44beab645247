"""The requests of the load benchmark, and their outcomes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from iblip.engines.language_model.options import GenerationOptions


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """One request.

    Attributes:
        at_s: when it arrives, in seconds from the start.
        pixels: of its image, uint8 `[height, width, 3]`.
        prompt: the question.
        options: how to generate.
    """

    at_s: float
    pixels: npt.NDArray[np.uint8]
    prompt: str
    options: GenerationOptions


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of one request; times are in seconds after it was due.

    Attributes:
        at_s: when it was due, in seconds from the start.
        first_s: time of its first text.
        last_s: time of its end.
        gaps_s: times between two pieces of its text.
        tokens: number of tokens in its answer.
        error: why it has no answer; empty if it has one.
    """

    at_s: float
    first_s: float
    last_s: float
    gaps_s: tuple[float, ...]
    tokens: int
    error: str
