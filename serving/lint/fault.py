"""`Fault`: one place of a repository that breaks a rule."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Fault:
    """One place that breaks a rule.

    Attributes:
        message: what was found there, and what was wanted.
        line: from 1; `None` where it is not a line's fault.
        path: of the file or folder; `None` is the model's config.
    """

    message: str
    line: int | None = None
    path: Path | None = None
