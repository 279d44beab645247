"""What the load benchmark asks, and what it gets back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from iblip.engines.language_model.options import GenerationOptions


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request.

    Attributes:
        at_s: when it arrives, in seconds from the beginning.
        pixels: of its picture.
        prompt: about it.
        options: of its answer.
    """

    at_s: float
    pixels: npt.NDArray[np.uint8]
    prompt: str
    options: GenerationOptions


@dataclass(frozen=True, kw_only=True)
class Got:
    """What became of one request, in seconds after it was to arrive.

    Attributes:
        at_s: when it was to arrive, from the beginning.
        first_s: its first text.
        last_s: its end.
        gaps_s: between two pieces of its text.
        tokens: of its answer.
        error: why it has none; empty where it has.
    """

    at_s: float
    first_s: float
    last_s: float
    gaps_s: tuple[float, ...]
    tokens: int
    error: str
