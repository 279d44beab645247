"""What is refused of a request before anything is tokenised. Needs no tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iblip.export.artifact.manifest import how_to_raise
from iblip.export.errors import InputError

if TYPE_CHECKING:
    pass


def check_images(count: int, most: int) -> None:
    """Refuses a request of no image, or of more than there may be.

    Raises:
        InputError: naming both numbers.
    """
    if not 1 <= count <= most:
        wanted = "1" if most == 1 else f"1 to {most}"
        raise InputError(
            f"the request has {count} images; wanted {wanted}. Where a model takes several, "
            f"{how_to_raise('max_images')}."
        )


def check_prompt(prompt: str, *, may_be_empty: bool = False) -> None:
    """Refuses what is no question at all.

    Raises:
        InputError: the prompt is not a string, or has nothing but white space in it and may not be
            so.
    """
    if not isinstance(prompt, str):
        raise InputError(f"the prompt is a {type(prompt).__name__}; wanted text")
    if not prompt.strip() and not may_be_empty:
        raise InputError("the prompt is empty. Ask something, such as 'What is in the image?'")
