"""How long work tells that it goes on. The command line decides what that looks like."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

Advance = Callable[[int], object]
"""Called with how much more is done, in the stage's own unit."""


class Progress(Protocol):
    """Told of each stage of a long piece of work."""

    def stage(
        self, title: str, total: int | None = None, unit: str = ""
    ) -> AbstractContextManager[Advance]:
        """Opens a stage.

        Args:
            title: what is being done.
            total: how much there is to do; `None` where that is not known.
            unit: of `total`: `"B"` for bytes, or a plural noun.
        """
        ...

    def note(self, message: str) -> None:
        """Tells something worth knowing."""
        ...


class Silent:
    """Progress that tells nobody."""

    def stage(
        self, title: str, total: int | None = None, unit: str = ""
    ) -> AbstractContextManager[Advance]:
        """Does nothing."""
        return nullcontext(lambda amount: None)

    def note(self, message: str) -> None:
        """Does nothing."""
