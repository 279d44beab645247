"""How long work reports its progress. The command line decides how that is shown."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

Advance = Callable[[int], object]
"""Called with the amount of work that has been done since, in the stage's own unit."""


class Progress(Protocol):
    """Receives each stage of long work."""

    def stage(
        self, title: str, total: int | None = None, unit: str = ""
    ) -> AbstractContextManager[Advance]:
        """Opens a stage.

        Args:
            title: description of the work.
            total: amount of work; `None` if it is not known.
            unit: of `total`: `"B"` for bytes, or a plural noun.
        """
        ...

    def note(self, message: str) -> None:
        """Shows a message."""
        ...


class Silent:
    """Progress that is not shown."""

    def stage(
        self, title: str, total: int | None = None, unit: str = ""
    ) -> AbstractContextManager[Advance]:
        """Does nothing."""
        return nullcontext(lambda amount: None)

    def note(self, message: str) -> None:
        """Does nothing."""
