"""What every engine asks of a request before it is queued."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import GenerationRequest
from iblip.export.artifact.manifest import LanguageModelFacts, how_to_raise
from iblip.export.errors import EngineError, InputError, OptionError, QueueFullError

_FLOATS = tuple(np.dtype(d) for d in (np.float32, np.float16, ml_dtypes.bfloat16))


def check_visual_prompt(visual_prompt: npt.NDArray[Any], facts: LanguageModelFacts) -> None:
    """Refuses a visual prompt that is not this model's.

    Raises:
        InputError: not float `[images, queries, hidden]`, of one image or more.
    """
    wanted = (facts.num_query_tokens, facts.hidden_size)
    fits = visual_prompt.ndim == 3 and visual_prompt.shape[1:] == wanted and len(visual_prompt)
    if not fits or visual_prompt.dtype not in _FLOATS:
        raise InputError(
            f"the visual prompt is {visual_prompt.dtype} {list(visual_prompt.shape)}; "
            f"wanted float16 or float32 [images, {wanted[0]}, {wanted[1]}], the qformer's output"
        )


def check_tokens(options: GenerationOptions, facts: LanguageModelFacts) -> None:
    """Refuses token ids that the model does not have.

    Raises:
        OptionError: naming the option and the ids that there are.
    """
    for name in ("stop_token_ids", "logit_bias"):
        for token in getattr(options, name):
            if token >= facts.vocab_size:
                raise OptionError(
                    f"{name} has token {token}; this model's tokens are 0 to {facts.vocab_size - 1}"
                )


def with_own_copy(request: GenerationRequest) -> GenerationRequest:
    """The request with a visual prompt of its own.

    The caller's array may be a buffer that is used again before the request's turn comes.
    """
    return replace(request, visual_prompt=np.array(request.visual_prompt))


def queue_full_error(waiting: int) -> QueueFullError:
    """Of an engine in which so many requests wait."""
    return QueueFullError(
        f"{waiting} requests are waiting, as many as this engine takes. "
        f"Try again later; {how_to_raise('queue')}."
    )


def closed_error() -> EngineError:
    """The error of a request to an engine that is closed, or of one that its closing ended."""
    return EngineError("the language-model engine is closed")
