"""The demo's held-out questions, asked of a served build: each answer and how long it took."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iblip.export.artifact.manifest import Manifest
from iblip.export.errors import BuildDirectoryError
from iblip.export.examples import Example

if TYPE_CHECKING:
    from iblip.serving.client import Client

CLAIM = 0.9
"""The share of right answers that each demo checkpoint claims (see its model card)."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A question, and its answer.

    Attributes:
        question: as asked.
        text: the answer.
        first_s: seconds until its first text; decoding and sending the image are included.
        whole_s: seconds until its end.
    """

    question: Example
    text: str
    first_s: float
    whole_s: float

    @property
    def is_right(self) -> bool:
        """Whether the answer is exactly the expected one."""
        return self.question.is_right(self.text)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "image": str(self.question.image),
            "kind": self.question.kind,
            "prompt": self.question.prompt,
            "answer": self.text,
            "expected": self.question.answer,
            "right": self.is_right,
            "first_s": self.first_s,
            "whole_s": self.whole_s,
        }


def choose_questions(questions: Iterable[Example], count: int) -> list[Example]:
    """`count` questions of as many kinds as possible, the first of each kind first."""
    turns: dict[int, list[Example]] = {}
    seen: dict[str, int] = {}
    for question in questions:
        turn = seen[question.kind] = seen.get(question.kind, 0) + 1
        turns.setdefault(turn, []).append(question)
    return [question for turn in sorted(turns) for question in turns[turn]][:count]


def ask_all(client: Client, questions: Sequence[Example]) -> Iterator[Result]:
    """Asks the questions one after another."""
    for question in questions:
        started = time.monotonic()
        first_s = 0.0
        with client.stream(question.image, question.prompt) as stream:
            for _ in stream:
                first_s = first_s or time.monotonic() - started
            whole_s = time.monotonic() - started
            yield Result(
                question=question, text=stream.text, first_s=first_s or whole_s, whole_s=whole_s
            )


def least_right(count: int) -> int:
    """How many of `count` answers must be right for the checkpoint's claim to hold."""
    return math.floor(CLAIM * count)


def is_current(directory: Path, checkpoint: Path) -> bool:
    """Whether `directory` is a build of the checkpoint as it is now."""
    try:
        source = Manifest.read(directory).source
    except BuildDirectoryError:
        return False
    files: Mapping[str, str] = source.get("files", {})
    return bool(files) and all(
        _sha256(checkpoint / name) == digest for name, digest in files.items()
    )


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
