"""What a rule is, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from iblip.serving.lint.fault import Fault

if TYPE_CHECKING:
    from iblip.serving.lint.reading import Model, Repository


class Severity(StrEnum):
    """How bad a finding is: a repository with errors does not serve what it means to."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Verdict(StrEnum):
    """What Triton 2.51 itself does with a repository that breaks the rule."""

    REFUSES = "the server does not load the model"
    ACCEPTS = "the server loads the model and says nothing"
    WAITS = "the server waits for the model for ever"
    UNASKED = "not known: no server with that backend could be asked"


Check = Callable[["Model", "Repository"], Iterable[Fault]]
"""Asks one rule about one model."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One row of `rules.RULES`.

    Attributes:
        id: its name, in words with hyphens.
        severity: of what it finds.
        title: what must hold, as a sentence.
        why: what happens otherwise.
        mend: what to do.
        server: what Triton does.
        check: finds the faults.
        anyway: asked of configs, too, that cannot be parsed: `Model.config` may be `None`.
    """

    id: str
    severity: Severity
    title: str
    why: str
    mend: str
    server: Verdict
    check: Check
    anyway: bool = False


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A fault with the rule that it breaks.

    Attributes:
        rule: whose it is.
        model: the folder's name.
        path: of the file or folder, relative to the directory that was checked.
        line: from 1, or `None`.
        message: what was found, and what was wanted.
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
