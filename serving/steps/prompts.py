"""The prompt tensor of a request as text. Knows numpy only."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from export.errors import InputError


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
