"""Questions about images, with the right answers if they are known: `examples.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iblip.export.errors import InputError
from iblip.export.images import check_image
from iblip.export.messages import listed
from iblip.export.system.json_text import parse_json

EXAMPLES = "examples.jsonl"
"""Name of the file, in a directory of its own or in a checkpoint's `examples`."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A question about an image, and the right answer if it is known.

    Attributes:
        name: unique name of the example.
        image: the image file.
        prompt: the question.
        answer: the right answer; `None` if accuracy is not measured.
        kind: of question; empty if the file does not say.
    """

    name: str
    image: Path
    prompt: str
    answer: str | None
    kind: str = ""

    def is_right(self, text: str) -> bool:
        """Whether `text` equals the right answer, except for white space at the ends."""
        return self.answer is not None and text.strip() == self.answer.strip()


def read_examples(directory: Path, limit: int | None = None) -> list[Example]:
    """Reads `examples.jsonl`: one `{"id", "image", "prompt", "answer", "kind"}` a line.

    Args:
        directory: holds the file; `image` is relative to it.
        limit: largest number of examples, evenly spread over the file; `None` reads all.

    Raises:
        InputError: the file is missing, empty or malformed.
    """
    path = directory / EXAMPLES
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        examples = [
            _example(directory, number, line)
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]
    except FileNotFoundError:
        raise InputError(f"there is no {path}; expected one JSON object a line") from None
    except ValueError as error:
        raise InputError(
            f"{path} is malformed: {error}. Expected a JSON object a line, with id, image, prompt"
            " and, where accuracy is to be measured, answer"
        ) from error
    if not examples:
        raise InputError(f"{path} is empty")
    if limit is not None and limit < len(examples):
        chosen = np.linspace(0, len(examples) - 1, limit).round().astype(int)
        examples = [examples[i] for i in chosen]
    return examples


def check_examples(directory: Path, limit: int | None = None) -> None:
    """Refuses examples that cannot be asked, before any work is done.

    Args:
        directory, limit: as `read_examples` takes them.

    Raises:
        InputError: the file is missing, empty or malformed, or an image is not there or is none.
    """
    examples = read_examples(directory, limit)
    missing = [str(e.image) for e in examples if not e.image.is_file()]
    if missing:
        raise InputError(
            f"{directory / EXAMPLES} names images that are not there:\n  {listed(missing)}"
        )
    for image in {e.image: None for e in examples}:
        check_image(image)


def _example(directory: Path, number: int, line: str) -> Example:
    """The example of a line. Raises ValueError."""
    try:
        data: Mapping[str, Any] = parse_json(line)
        return Example(
            name=str(data["id"]),
            image=directory / data["image"],
            prompt=data["prompt"],
            answer=data.get("answer"),
            kind=data.get("kind", ""),
        )
    except KeyError as error:
        raise ValueError(f"line {number} has no {error.args[0]!r}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"line {number}: {error}") from error
