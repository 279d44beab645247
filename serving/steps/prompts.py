"""The text step: checks a request, tokenises its instruction, and notes when it arrived."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from iblip.engines.text.checks import check_images, check_prompt
from iblip.engines.text.instructions import InstructionTokenizer, instruction_tensors
from iblip.export.errors import InputError, UsageError
from iblip.serving.wire import (
    ACCEPTED_PIXELS,
    ARRIVED,
    FAULT,
    error_from_text,
    options_from_parameters,
    text_from_error,
)

PLACEHOLDER = "."
"""What the Q-Former reads instead of a prompt with a fault."""


def prompt_from_tensor(tensor: npt.NDArray[Any], name: str = "prompt") -> str:
    """The text of a BYTES tensor of one element, as Triton hands it over (object dtype).

    Args:
        tensor: of any shape.
        name: of it, for messages.

    Raises:
        InputError: not one element, or not UTF-8.
    """
    if tensor.size != 1:
        raise InputError(f"the {name} has shape {list(tensor.shape)}; expected one string, [1]")
    data = tensor.reshape(-1)[0]
    try:
        return str(data, "utf-8") if isinstance(data, bytes) else str(data)
    except UnicodeDecodeError as error:
        raise InputError(f"the {name} is not UTF-8: {error}") from error


def text_tensors(
    tensor: npt.NDArray[Any],
    pixels: npt.NDArray[np.uint8],
    tokenizer: InstructionTokenizer | None,
    most_images: int,
    parameters: Mapping[str, Any] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """The output tensors of the text step for one request.

    The images pass through this step, so the vision encoder never gets more than it takes. A fault
    does not fail the step but travels as a tensor, which the language model raises: in Triton 2.51
    an ensemble in which one step fails while another runs may never end.

    Args:
        tensor: see `prompt_from_tensor`.
        pixels: uint8 `[images, height, width, 3]`.
        tokenizer: of the Q-Former's instruction; `None` if it takes none.
        most_images: most images in one request.
        parameters: of the request; its options say how to truncate the instruction.

    Returns:
        `accepted_pixels`: the images, or one black image if there is a fault; the instruction's
        tensors, a row for each image; `arrived`, int64 `[1]`: nanoseconds of a clock that all
        processes of the machine share; `fault`, bytes `[1]`: what is wrong, or empty.
    """
    arrived, fault = time.monotonic_ns(), ""
    try:
        check_images(len(pixels), most_images)
        prompt = prompt_from_tensor(tensor)
        check_prompt(prompt, may_be_empty=tokenizer is None)
        options = options_from_parameters(parameters or {})
        ids = instruction_tensors(
            tokenizer,
            prompt,
            truncation=options.truncation,
            max_instruction=options.max_instruction,
        )
    except UsageError as error:
        fault = text_from_error(error)
        ids = tokenizer(PLACEHOLDER) if tokenizer else {}
        pixels = np.zeros((1, *pixels.shape[1:]), np.uint8)
    return {
        ACCEPTED_PIXELS: pixels,
        **{name: np.repeat(rows, len(pixels), axis=0) for name, rows in ids.items()},
        ARRIVED: np.array([arrived], np.int64),
        FAULT: np.array([fault.encode()], np.object_),
    }


def check_fault(tensor: npt.NDArray[Any] | None) -> None:
    """Raises the `InputError` or `OptionError` that the text step found, if any.

    Raises:
        InputError: also where the tensor is not one text.
    """
    error = None if tensor is None else error_from_text(prompt_from_tensor(tensor, FAULT))
    if error is not None:
        raise error


def seconds_since(arrived: npt.NDArray[np.int64] | None) -> float:
    """Seconds since a request arrived at the text step; 0 for one that did not pass it."""
    if arrived is None or arrived.size != 1:
        return 0.0
    return (time.monotonic_ns() - int(arrived.reshape(-1)[0])) / 1e9
