"""Refuses faulty requests before anything is tokenised. Needs no tokenizer."""

from __future__ import annotations

from iblip.export.artifact.manifest import how_to_raise
from iblip.export.errors import InputError
from iblip.export.messages import kind_of


def check_images(count: int, limit: int) -> None:
    """Refuses a request with no image, or with more than `limit`.

    Raises:
        InputError: the message names both numbers.
    """
    if not 1 <= count <= limit:
        expected = "1" if limit == 1 else f"1 to {limit}"
        raise InputError(
            f"the request has {count} images; expected {expected}. Where a model takes several, "
            f"{how_to_raise('max_images')}."
        )


def check_prompt(prompt: str, *, may_be_empty: bool = False) -> None:
    """Refuses a prompt that is not text or is empty.

    Raises:
        InputError: the prompt is not a string, or it is only white space and may not be empty.
    """
    if not isinstance(prompt, str):
        raise InputError(f"the prompt is {kind_of(prompt)}; expected text")
    if not prompt.strip() and not may_be_empty:
        raise InputError("the prompt is empty. Ask something, such as 'What is in the image?'")
