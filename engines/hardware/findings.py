"""What a check found: in words for people, in fields for programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["ok", "note", "warning", "problem"]
"""`note`: as it is, and worth knowing. `warning`: it may fail. `problem`: it does not work."""

VERDICTS: tuple[Verdict, ...] = ("ok", "note", "warning", "problem")
"""From good to bad."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of a report.

    Attributes:
        title: of what was looked at.
        verdict: see `Verdict`.
        found: what is there.
        wanted: what should be; `None` where nothing is amiss.
        remedy: what to do, with the command where there is one.

    Raises:
        ValueError: a warning or a problem that does not say what was wanted and what to do.
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
    """The worst verdict among them; `ok` of none."""
    return max((one.verdict for one in findings), key=VERDICTS.index, default="ok")
