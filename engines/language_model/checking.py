"""The checks that every engine makes of a request before it is queued."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.totals import Totals
from iblip.engines.language_model.types import GenerationRequest
from iblip.export.artifact.manifest import LanguageModelFacts, how_to_raise
from iblip.export.errors import EngineError, InputError, OptionError, QueueFullError

_FLOATS = tuple(np.dtype(d) for d in (np.float32, np.float16, ml_dtypes.bfloat16))


def check_visual_prompt(visual_prompt: npt.NDArray[Any], facts: LanguageModelFacts) -> None:
    """Refuses a visual prompt of a wrong dtype or shape.

    Raises:
        InputError: it is not float `[images, queries, hidden]`, of one image or more.
    """
    queries, hidden = facts.num_query_tokens, facts.hidden_size
    fits = visual_prompt.ndim == 3 and visual_prompt.shape[1:] == (queries, hidden)
    fits = fits and len(visual_prompt) > 0
    if not fits or visual_prompt.dtype not in _FLOATS:
        raise InputError(
            f"the visual prompt is {visual_prompt.dtype} {list(visual_prompt.shape)}; "
            f"expected float16 or float32 [images, {queries}, {hidden}], the qformer's output"
        )


def check_tokens(options: GenerationOptions, facts: LanguageModelFacts) -> None:
    """Refuses token ids that the model does not have.

    Raises:
        OptionError: the message names the option and the range of valid ids.
    """
    for name in ("stop_token_ids", "logit_bias"):
        for token in getattr(options, name):
            if token >= facts.vocab_size:
                raise OptionError(
                    f"{name} has token {token}; this model's tokens are 0 to {facts.vocab_size - 1}"
                )


def copy_visual_prompt(request: GenerationRequest) -> GenerationRequest:
    """The request with a copy of its visual prompt.

    The caller's array may be a buffer that is reused before the request's turn comes.
    """
    return replace(request, visual_prompt=np.array(request.visual_prompt))


def check_queue(waiting: int, limit: int, totals: Totals) -> None:
    """Refuses a request, and counts it, where as many wait as the engine takes.

    Raises:
        QueueFullError: naming the number.
    """
    if waiting >= limit:
        totals.count_refused()
        raise QueueFullError(
            f"{waiting} requests are waiting, as many as this engine takes. "
            f"Try again later; {how_to_raise('queue')}."
        )


def closed_error() -> EngineError:
    """The error of a request to a closed engine, or of a request that was ended by closing it."""
    return EngineError("the language-model engine is closed")
