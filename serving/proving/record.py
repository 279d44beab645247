"""The record of a proof: JSON lines, each appended as soon as its fact is known.

The first line is the head (build, machine, versions), then come facts and the end of each stage,
and the last line is the verdict. A record without one was cut short, and has what was known.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from iblip.export.artifact.manifest import MANIFEST
from iblip.export.errors import OptionError
from iblip.export.system.files import sha256

FORMAT = 1
"""Of a record's head."""

FOLDER = "proof"
"""The folder of a build directory that holds its latest record; no digest covers it."""

RECORD = f"{FOLDER}/record.jsonl"

Sense = Literal["most", "least"]

End = Literal["done", "skipped", "failed"]
"""How a stage ended: it measured; nothing was to be measured; or it failed before its end."""

Verdict = Literal["passed", "failed", "stubs", "cut short"]
"""`stubs`: it ran, over libraries that pose as a GPU and compute nothing."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """Something that a stage found out.

    Attributes:
        name: what it is, for people, with its unit.
        value: a number, or words.
        limit: of a number; `None` if it is only reported.
        sense: whether the limit is the `most` or the `least` that the number may be.
        where: the case in which it was measured; may be empty.
        wrong: whether it is a fault, whatever the number.
    """

    name: str
    value: float | str
    limit: float | None = None
    sense: Sense = "most"
    where: str = ""
    wrong: bool = False

    @property
    def passed(self) -> bool | None:
        """Whether it is as it should be; `None` if it is only reported."""
        if self.wrong:
            return False
        if self.limit is None:
            return None
        value = float(self.value)
        return value <= self.limit if self.sense == "most" else value >= self.limit

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; numbers that are not finite are text."""
        value = self.value
        if isinstance(value, float) and not math.isfinite(value):
            value = str(value)
        limited = {} if self.limit is None else {"limit": self.limit, "sense": self.sense}
        where = {"where": self.where} if self.where else {}
        return {"name": self.name, "value": value, **where, **limited, "passed": self.passed}


class Writer:
    """Appends lines to a record. Every line is on the disk's side before `write` returns.

    Args:
        path: of the record; what was there is replaced.

    Raises:
        OptionError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise OptionError(
                f"the record {path} cannot be written: {error}. Name another file with --record."
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends one JSON object."""
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()


@dataclass(frozen=True, kw_only=True)
class Record:
    """A record as it was read.

    Attributes:
        head: `{"format", "build", "manifest", "engines", "precision", "gpu", "stubs", …}`.
        stages: by name, in order: `{"ended", "reason", "seconds", "facts": […]}`; `ended` is `None`
            where the run was cut short.
        verdict: of the whole.
        proven: whether `--engine auto` may take such engines on such a machine.
        reason: of the verdict, or why it proves nothing; a sentence.
    """

    head: Mapping[str, Any]
    stages: Mapping[str, Mapping[str, Any]]
    verdict: Verdict
    proven: bool
    reason: str

    @classmethod
    def from_lines(cls, lines: Sequence[str]) -> Self:
        """Reads a record; a last line that is not whole is passed over.

        Raises:
            ValueError: it is none.
        """
        read: list[dict[str, Any]] = []
        for index, line in enumerate(lines):
            try:
                read.append(json.loads(line))
            except ValueError:
                if index + 1 < len(lines):
                    raise
        if not read or read[0].get("format") != FORMAT:
            raise ValueError("it does not begin with the head of a record")
        head, *rest = read
        stages: dict[str, dict[str, Any]] = {}
        last: Mapping[str, Any] = {
            "verdict": "cut short",
            "proven": False,
            "reason": "The run ended before its verdict.",
        }
        for line_ in rest:
            if "verdict" in line_:
                last = line_
                continue
            empty: dict[str, Any] = {"ended": None, "reason": "", "seconds": None, "facts": []}
            stage = stages.setdefault(line_.pop("stage"), empty)
            if "ended" in line_:
                stage.update(line_)
            else:
                stage["facts"].append(line_)
        return cls(head=head, stages=stages, **{key: last[key] for key in LAST})

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads the record at `path`.

        Raises:
            OSError, ValueError: there is none.
        """
        return cls.from_lines(path.read_text(encoding="utf-8").splitlines())

    def is_of(self, directory: Path) -> bool:
        """Whether the build in `directory` is the one that was proven."""
        return bool(self.head["manifest"] == sha256(directory / MANIFEST))

    @property
    def failures(self) -> list[str]:
        """What is not as it should be, in words, stage by stage."""
        faults = []
        for name, stage in self.stages.items():
            faults += [
                f"{name}: {fact['name']}" for fact in stage["facts"] if fact["passed"] is False
            ]
            if stage["ended"] == "failed":
                faults.append(f"{name}: {stage['reason']}")
        return faults

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            **self.head,
            "verdict": self.verdict,
            "proven": self.proven,
            "reason": self.reason,
            "stages": self.stages,
        }

    @property
    def summary(self) -> str:
        """One line for `inspect` and `doctor`."""
        where = self.head["gpu"]["name"] if self.head["gpu"] else "this CPU"
        when = self.head["created"][:10]
        return f"{self.verdict} on {where}, {when}. {self.reason}"


LAST = ("verdict", "proven", "reason")
"""Fields of the last line."""


def record_of_build(directory: Path) -> Record | None:
    """The record that lies with a build; `None` where there is none of this very build."""
    try:
        record = Record.read(directory / RECORD)
        return record if record.is_of(directory) else None
    except (OSError, ValueError, KeyError):
        return None
