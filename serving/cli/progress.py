"""The display of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

import click

from iblip.export.messages import printable
from iblip.export.progress import Advance

BYTES = "B"

PERIOD_S = 5.0
"""Seconds between two lines about one stage, where there is no terminal."""


class Terminal:
    """Shows each stage on a stream: with a bar and an estimate if the stream is a terminal.

    Elsewhere a stage that knows its total reports its progress every few seconds, and how long the
    rest will take at the rate so far.

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
        self._period_s = period_s
        self._clock = clock

    @contextmanager
    def stage(self, title: str, total: int | None = None, unit: str = "") -> Iterator[Advance]:
        """Shows that the stage has begun (on a terminal), its progress, and how long it took."""
        started = self._clock()
        if self._stream.isatty():
            if total:
                with click.progressbar(
                    length=total, label=f"  {title}", file=self._stream, show_pos=unit != BYTES
                ) as bar:
                    yield bar.update
            else:
                click.echo(f"  {title} …", file=self._stream, nl=False)
                yield _ignore
            click.echo("\r\x1b[2K", file=self._stream, nl=False)
            if total:
                click.echo("\x1b[1A\x1b[2K", file=self._stream, nl=False)
        else:
            yield self._lines(title, total, unit, started) if total else _ignore
        size = f" ({_amount(total, unit)})" if total else ""
        click.echo(f"  {title}{size}: {self._clock() - started:.1f} s", file=self._stream)

    def note(self, message: str) -> None:
        """Prints one line."""
        click.echo(printable(message), file=self._stream)

    def _lines(self, title: str, total: int, unit: str, started: float) -> Advance:
        done, shown = 0, started

        def advance(amount: int) -> None:
            nonlocal done, shown
            done, now = done + amount, self._clock()
            if now - shown < self._period_s or not 0 < done < total:
                return
            shown, rest = now, (now - started) * (total - done) / done
            share = f"{done / total:.0%} of {_amount(total, unit)}"
            click.echo(f"  {title}: {share}, {_span(rest)} left", file=self._stream)

        return advance


def _ignore(amount: int) -> None:
    """Takes how much more is done, and shows nothing."""


def _amount(total: int, unit: str) -> str:
    return f"{total / 2**20:,.1f} MiB" if unit == BYTES else f"{total:,} {unit}"


def _span(seconds: float) -> str:
    whole = max(1, round(seconds))
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"
