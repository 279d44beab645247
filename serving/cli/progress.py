"""The display of long work: one line that moves on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

import click

from iblip.export.messages import printable
from iblip.export.progress import Advance, Progress, Silent
from iblip.serving.cli.commands import is_quiet
from iblip.serving.cli.formatting import size_of

BYTES = "B"

PERIOD_S = 5.0
"""Seconds between two lines about one stage, where there is no terminal."""

FRAME_S = 0.2
"""Seconds between two drawings of the line, where there is one."""

NARROWEST_BAR = 8
"""Characters between the brackets; on a terminal with less room there is no bar."""


def command_progress() -> Progress:
    """How the command that runs shows its work: not at all with `--quiet`."""
    return Silent() if is_quiet() else Terminal()


@dataclass
class Stage:
    """A stage under way.

    Attributes:
        title: description of the work.
        total: amount of work; `None` if it is not known.
        unit: of `total`.
        started: seconds of the clock.
        done: amount of work.
        drawn: seconds of the clock when it was last told of.
    """

    title: str
    total: int | None
    unit: str
    started: float
    done: int = 0
    drawn: float = field(init=False)

    def __post_init__(self) -> None:
        self.drawn = self.started

    def seconds_left(self, now: float) -> float | None:
        """An estimate at the rate so far; `None` without one."""
        if not self.total or not 0 < self.done < self.total:
            return None
        return (now - self.started) * (self.total - self.done) / self.done


class Terminal:
    """Shows each stage on a stream: on a terminal as one line that is drawn again and again.

    That line fits whatever width the terminal has at the moment, and its seconds go on while a
    stage has nothing to report. Elsewhere every few seconds a line says how far the stage is.

    Args:
        stream: stderr by default, so that stdout holds only the command's result.
        period_s: seconds between those lines.
        clock: seconds since some fixed moment.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        period_s: float = PERIOD_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._draws = self._stream.isatty()
        self._period_s = FRAME_S if self._draws else period_s
        self._lock = threading.RLock()

    @contextmanager
    def stage(self, title: str, total: int | None = None, unit: str = "") -> Iterator[Advance]:
        """Shows the stage's progress, and how long it took."""
        stage = Stage(title=printable(title), total=total, unit=unit, started=self._clock())
        ended = threading.Event()
        ticking = threading.Thread(target=self._tick, args=(stage, ended), daemon=True)
        self._tell(stage, at_once=self._draws)
        ticking.start()
        try:
            yield lambda amount: self._advance(stage, amount)
        finally:
            ended.set()
            ticking.join()
            self._clear()
        size = f" ({_amount(total, unit)})" if total else ""
        self._print(f"  {stage.title}{size}: {self._clock() - stage.started:.1f} s")

    def note(self, message: str) -> None:
        """Prints a message, on a terminal in lines that end between words."""
        self._clear()
        lines = printable(message).splitlines() or [""]
        if self._draws:
            lines = [part for line in lines for part in _wrap(line, _columns()) or [""]]
        self._print("\n".join(lines))

    def _tick(self, stage: Stage, ended: threading.Event) -> None:
        """Shows a stage that reports nothing, until it ends."""
        while not ended.wait(self._period_s):
            self._tell(stage)

    def _advance(self, stage: Stage, amount: int) -> None:
        stage.done += amount
        self._tell(stage)

    def _tell(self, stage: Stage, *, at_once: bool = False) -> None:
        with self._lock:
            now = self._clock()
            if now - stage.drawn < self._period_s and not at_once:
                return
            stage.drawn = now
            if self._draws:
                self._print(f"\r{_drawn(stage, now, _columns() - 1)}\x1b[K", nl=False)
            elif stage.total is None or stage.done < stage.total:
                self._print(f"  {stage.title}: {', '.join(_facts(stage, now))}")

    def _clear(self) -> None:
        if self._draws:
            self._print("\r\x1b[K", nl=False)

    def _print(self, text: str, *, nl: bool = True) -> None:
        with self._lock:
            click.echo(text, file=self._stream, nl=nl)


def _facts(stage: Stage, now: float) -> Iterator[str]:
    """How far a stage is, in words."""
    if stage.total:
        yield f"{stage.done / stage.total:.0%} of {_amount(stage.total, stage.unit)}"
    left = stage.seconds_left(now)
    yield f"{_span(now - stage.started)} so far" if left is None else f"{_span(left)} left"


def _drawn(stage: Stage, now: float, room: int) -> str:
    """The line of a stage, in at most `room` characters."""
    left = stage.seconds_left(now)
    span = _span(now - stage.started) if left is None else f"{_span(left)} left"
    share = f"{stage.done / stage.total:4.0%}  " if stage.total else ""
    end = f"  {share}{span}"
    title = f"  {stage.title}"
    if len(title) + len(end) > room:
        title = title[: max(room - len(end) - 1, 0)] + "…"
    bar = room - len(title) - len(end) - 4
    if stage.total and bar >= NARROWEST_BAR:
        width = min(bar, 36)
        full = width * min(stage.done, stage.total) // stage.total
        title += f"  [{'#' * full}{'-' * (width - full)}]"
    return (title + end)[: max(room, 0)]


def _columns() -> int:
    return shutil.get_terminal_size().columns


def _wrap(line: str, columns: int) -> list[str]:
    return textwrap.wrap(
        line, columns, break_long_words=False, break_on_hyphens=False, subsequent_indent="  "
    )


def _amount(total: int, unit: str) -> str:
    return size_of(total) if unit == BYTES else f"{total:,} {unit}"


def _span(seconds: float) -> str:
    whole = max(1, round(seconds))
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"
