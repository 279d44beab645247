"""`Rule`, and `Diagnostic`: what a rule reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from iblip.serving.lint.fault import Fault

if TYPE_CHECKING:
    from iblip.serving.lint.reading import Model, Repository


class Severity(StrEnum):
    """How serious a diagnostic is: a repository with errors does not serve what it should."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Verdict(StrEnum):
    """What Triton 2.51 does with a repository that breaks the rule."""

    REFUSES = "the server does not load the model"
    ACCEPTS = "the server loads the model without a message"
    WAITS = "the server waits for the model forever"
    UNASKED = "unknown: no server with that backend was available"


Check = Callable[["Model", "Repository"], Iterable[Fault]]
"""Yields the faults of one model by one rule."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One row of `rules.RULES`.

    Attributes:
        id: its name, in words joined by hyphens.
        severity: of its diagnostics.
        title: what must hold, as a sentence.
        why: what happens otherwise.
        mend: what to do about it.
        server: what Triton does.
        check: finds the faults.
        without_config: applies to models whose config cannot be parsed as well: `Model.config` may
            be `None`.
    """

    id: str
    severity: Severity
    title: str
    why: str
    mend: str
    server: Verdict
    check: Check
    without_config: bool = False

    def to_json(self) -> dict[str, str]:
        """What is said of it, JSON-ready."""
        names = ("id", "severity", "title", "why", "mend")
        return {name: getattr(self, name) for name in names} | {"server": str(self.server)}


@dataclass(frozen=True, kw_only=True)
class Diagnostic:
    """A fault, and the rule that it breaks.

    Attributes:
        rule: the rule that is broken.
        model: name of the model's folder.
        path: of the file or folder, relative to the directory that was checked.
        line: from 1; `None` where the fault is not on a line.
        message: what was found, and what was expected.
    """

    rule: Rule
    model: str
    path: str
    line: int | None
    message: str

    @property
    def place(self) -> str:
        """`path:line`."""
        return self.path if self.line is None else f"{self.path}:{self.line}"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "rule": self.rule.id,
            "severity": str(self.rule.severity),
            "model": self.model,
            "file": self.path,
            "line": self.line,
            "message": self.message,
            "why": self.rule.why,
            "mend": self.rule.mend,
        }

    def __str__(self) -> str:
        return (
            f"{self.place}: {self.rule.severity}: {self.message} [{self.rule.id}]\n"
            f"    why: {self.rule.why}\n    do:  {self.rule.mend}"
        )
