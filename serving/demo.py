"""The demo: held-out questions, asked of a served build, each with its answer and its times."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import BuildDirectoryError, InputError
from export.manifest import Manifest

if TYPE_CHECKING:
    from serving.client import InstructBlipClient

CLAIM = 0.9
"""The share of right answers that every demo checkpoint claims (see its model card)."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One held-out example.

    Attributes:
        image: its picture.
        kind: of question.
        prompt: as it is asked.
        expected: the right answer.
    """

    image: Path
    kind: str
    prompt: str
    expected: str


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question, and what came back.

    Attributes:
        question: as asked.
        text: the answer.
        first_s: until its first text, in seconds; the picture's decoding and transfer are in it.
        whole_s: until its end, in seconds.
    """

    question: Question
    text: str
    first_s: float
    whole_s: float

    @property
    def is_right(self) -> bool:
        """Whether the answer is the expected one, to the letter."""
        return self.text.strip() == self.question.expected

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {
            "image": str(self.question.image),
            "kind": self.question.kind,
            "prompt": self.question.prompt,
            "answer": self.text,
            "expected": self.question.expected,
            "right": self.is_right,
            "first_s": self.first_s,
            "whole_s": self.whole_s,
        }


def read_questions(directory: Path) -> list[Question]:
    """The examples in `directory/examples.jsonl`, in their order.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = directory / "examples.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [
            Question(
                image=directory / row["image"],
                kind=row["kind"],
                prompt=row["prompt"],
                expected=row["answer"],
            )
            for row in rows
        ]
    except FileNotFoundError:
        raise InputError(f"there are no examples: {path} is missing") from None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error!r}") from error


def spread(questions: Iterable[Question], count: int) -> list[Question]:
    """`count` questions, of as many kinds as there are, the first of each kind first."""
    turns: dict[int, list[Question]] = {}
    seen: dict[str, int] = {}
    for question in questions:
        turn = seen[question.kind] = seen.get(question.kind, 0) + 1
        turns.setdefault(turn, []).append(question)
    return [question for turn in sorted(turns) for question in turns[turn]][:count]


def ask_all(client: InstructBlipClient, questions: Sequence[Question]) -> Iterator[Asked]:
    """Asks one after another."""
    for question in questions:
        started = time.monotonic()
        first_s = 0.0
        with client.stream(question.image, question.prompt) as stream:
            for _ in stream:
                first_s = first_s or time.monotonic() - started
            whole_s = time.monotonic() - started
            yield Asked(
                question=question, text=stream.text, first_s=first_s or whole_s, whole_s=whole_s
            )


def wanted_right(count: int) -> int:
    """How many of `count` answers must be right for the checkpoints' claim to stand."""
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
