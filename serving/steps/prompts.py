"""The text step: a request's prompt, what the Q-Former reads of it, and when it came."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.text import InstructionTokenizer, check_prompt
from export.errors import InputError
from serving.wire import ARRIVED


def prompt_from_tensor(tensor: npt.NDArray[Any]) -> str:
    """The text of a BYTES tensor of one element, as Triton hands it over (object dtype).

    Raises:
        InputError: not one element, or not UTF-8.
    """
    if tensor.size != 1:
        raise InputError(f"the prompt has shape {list(tensor.shape)}; wanted one string, [1]")
    data = tensor.reshape(-1)[0]
    try:
        return str(data, "utf-8") if isinstance(data, bytes) else str(data)
    except UnicodeDecodeError as error:
        raise InputError(f"the prompt is not UTF-8: {error}") from error


def text_tensors(
    tensor: npt.NDArray[Any], tokenizer: InstructionTokenizer | None
) -> dict[str, npt.NDArray[Any]]:
    """What the text step makes of a prompt tensor.

    Args:
        tensor: see `prompt_from_tensor`.
        tokenizer: of the Q-Former's instruction; `None` where it takes none.

    Returns:
        The instruction's tensors, and `arrived`, int64 `[1]`: the nanoseconds of a clock that all
        processes of a machine share.

    Raises:
        InputError: the prompt is empty, is not text, or is too long an instruction.
    """
    arrived = time.monotonic_ns()
    prompt = prompt_from_tensor(tensor)
    check_prompt(prompt)
    tensors = tokenizer(prompt) if tokenizer else {}
    return {**tensors, ARRIVED: np.array([arrived], np.int64)}


def seconds_since(arrived: npt.NDArray[np.int64] | None) -> float:
    """How long ago the text step met a request; 0 for one that never passed it."""
    return 0.0 if arrived is None else (time.monotonic_ns() - int(arrived[0])) / 1e9
