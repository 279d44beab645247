"""How long work shows its progress: as a bar, to a function of the caller's, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from iblip.export.errors import OptionError
from iblip.export.messages import shown
from iblip.export.progress import Advance, Progress, Silent


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a callback is told.

    Attributes:
        kind: `begin`, `advance` and `end` of a stage, in this order, or a `note` between them. A
            stage that fails has no `end`: the call raises the error.
        text: description of the stage, or the note.
        done: amount of work that is done, in `unit`.
        total: amount of work of the stage; `None` if it is not known.
        unit: `B` for bytes, or a plural noun; empty if there is no total.
    """

    kind: Literal["begin", "advance", "end", "note"]
    text: str
    done: int = 0
    total: int | None = None
    unit: str = ""


Callback = Callable[[Step], object]
"""Called in the thread that does the work; what it raises ends the work."""

ProgressOption = bool | Callback | None
"""`True`: a bar on stderr if that is a terminal, and else a line for each stage. A function is
called with each `Step`. `None` or `False`: nothing is shown."""


class CallbackProgress:
    """Tells a function of every step."""

    def __init__(self, callback: Callback) -> None:
        self._tell = callback

    @contextmanager
    def stage(self, title: str, total: int | None = None, unit: str = "") -> Iterator[Advance]:
        """Reports the stage's beginning, each advance, and its end if nothing is raised."""
        done = 0

        def advance(amount: int) -> None:
            nonlocal done
            done += amount
            self._tell(Step(kind="advance", text=title, done=done, total=total, unit=unit))

        self._tell(Step(kind="begin", text=title, total=total, unit=unit))
        yield advance
        self._tell(Step(kind="end", text=title, done=done, total=total, unit=unit))

    def note(self, message: str) -> None:
        """Reports a message."""
        self._tell(Step(kind="note", text=message))


def progress_from(option: ProgressOption) -> Progress:
    """What shows the progress that a caller asks for.

    Raises:
        OptionError: it is neither true, false, `None` nor a function.
    """
    if option is None or option is False:
        return Silent()
    if option is True:
        from iblip.serving.cli.progress import Terminal

        return Terminal()
    if callable(option):
        return CallbackProgress(option)
    raise OptionError(f"progress is {shown(option)}; expected True, False, None or a function")
