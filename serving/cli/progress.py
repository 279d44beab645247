"""What long work looks like: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

import click

from iblip.export.progress import Advance

BYTES = "B"

PERIOD_S = 5.0
"""Between two lines of one stage, where there is no terminal."""


class Terminal:
    """Tells each stage on a stream: with a bar and an estimate where that is a terminal.

    Elsewhere a stage that knows its total tells every few seconds how far it is, and how long the
    rest takes at the rate so far.

    Args:
        stream: stderr by default, so that stdout stays the command's own result.
        period_s: seconds between such lines.
        clock: seconds since any moment.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        period_s: float = PERIOD_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream or sys.stderr
        self._period_s = period_s
        self._clock = clock

    @contextmanager
    def stage(self, title: str, total: int | None = None, unit: str = "") -> Iterator[Advance]:
        """Tells that the stage began (on a terminal), how far it is, and how long it took."""
        started = self._clock()
        if self._stream.isatty():
            if total:
                with click.progressbar(
                    length=total, label=f"  {title}", file=self._stream, show_pos=unit != BYTES
                ) as bar:
                    yield bar.update
            else:
                click.echo(f"  {title} …", file=self._stream, nl=False)
                yield _nothing
            click.echo("\r\x1b[2K", file=self._stream, nl=False)
            if total:
                click.echo("\x1b[1A\x1b[2K", file=self._stream, nl=False)
        else:
            yield self._lines(title, total, unit, started) if total else _nothing
        size = f" ({_amount(total, unit)})" if total else ""
        click.echo(f"  {title}{size}: {self._clock() - started:.1f} s", file=self._stream)

    def note(self, message: str) -> None:
        """One line."""
        click.echo(message, file=self._stream)

    def _lines(self, title: str, total: int, unit: str, started: float) -> Advance:
        done, told = 0, started

        def advance(amount: int) -> None:
            nonlocal done, told
            done, now = done + amount, self._clock()
            if now - told < self._period_s or not 0 < done < total:
                return
            told, rest = now, (now - started) * (total - done) / done
            share = f"{done / total:.0%} of {_amount(total, unit)}"
            click.echo(f"  {title}: {share}, {_span(rest)} left", file=self._stream)

        return advance


def _nothing(amount: int) -> None:
    """Takes how much more is done, and shows nothing of it."""


def _amount(total: int, unit: str) -> str:
    return f"{total / 2**20:,.1f} MiB" if unit == BYTES else f"{total:,} {unit}"


def _span(seconds: float) -> str:
    whole = max(1, round(seconds))
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"
