"""The result of a check, in words for people and in fields for programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["ok", "note", "warning", "problem"]
"""`ok`; `note`: works, and worth knowing; `warning`: may fail; `problem`: does not work."""

VERDICTS: tuple[Verdict, ...] = ("ok", "note", "warning", "problem")
"""Every verdict, from best to worst."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of a report.

    Attributes:
        title: what was checked.
        verdict: see `Verdict`.
        found: what was found.
        wanted: what was expected; `None` if nothing is wrong.
        remedy: what to do, with the command if there is one.

    Raises:
        ValueError: a warning or a problem lacks `wanted` or `remedy`.
    """

    title: str
    verdict: Verdict
    found: str
    wanted: str | None = None
    remedy: str | None = None

    def __post_init__(self) -> None:
        if self.verdict in ("warning", "problem") and not (self.wanted and self.remedy):
            raise ValueError(f"{self.title}: a {self.verdict} says what was wanted, and what to do")

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return dict(vars(self))


def worst(findings: Iterable[Finding]) -> Verdict:
    """The worst verdict of some findings; `ok` if there are none."""
    return max((finding.verdict for finding in findings), key=VERDICTS.index, default="ok")
