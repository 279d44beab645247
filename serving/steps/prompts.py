"""The text step: a request's prompt, what the Q-Former reads of it, and when it came."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.text import InstructionTokenizer, check_prompt
from export.errors import InputError
from serving.wire import ARRIVED, FAULT, error_from_text, text_from_error

PLACEHOLDER = "."
"""What the Q-Former reads in place of a prompt that has a fault."""


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

    A fault of the prompt is no failure of this step but a tensor, for the language model to raise:
    an ensemble of Triton 2.51 in which one step fails while another runs may never end.

    Args:
        tensor: see `prompt_from_tensor`.
        tokenizer: of the Q-Former's instruction; `None` where it takes none.

    Returns:
        The instruction's tensors; `arrived`, int64 `[1]`: the nanoseconds of a clock that all
        processes of a machine share; `fault`, bytes `[1]`: what is wrong with the prompt, or empty.
    """
    arrived, fault = time.monotonic_ns(), ""
    try:
        prompt = prompt_from_tensor(tensor)
        check_prompt(prompt, may_be_empty=tokenizer is None)
        ids = tokenizer(prompt) if tokenizer else {}
    except InputError as error:
        fault = text_from_error(error)
        ids = tokenizer(PLACEHOLDER) if tokenizer else {}
    return {
        **ids,
        ARRIVED: np.array([arrived], np.int64),
        FAULT: np.array([fault.encode()], np.object_),
    }


def check_fault(tensor: npt.NDArray[Any] | None) -> None:
    """Raises the `InputError` that the text step found, if any."""
    error = None if tensor is None else error_from_text(tensor[0].decode())
    if error is not None:
        raise error


def seconds_since(arrived: npt.NDArray[np.int64] | None) -> float:
    """How long ago the text step met a request; 0 for one that never passed it."""
    return 0.0 if arrived is None else (time.monotonic_ns() - int(arrived[0])) / 1e9
