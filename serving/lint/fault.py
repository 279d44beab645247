"""`Fault`: one place in a repository that breaks a rule."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Fault:
    """One place that breaks a rule.

    Attributes:
        message: what was found there, and what was expected.
        line: from 1; `None` where the fault is not on a line.
        path: of the file or folder; `None` is the model's config.
    """

    message: str
    line: int | None = None
    path: Path | None = None
