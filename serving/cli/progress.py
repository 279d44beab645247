"""What long work looks like: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import click

from export.progress import Advance

BYTES = "B"


class Terminal:
    """Tells each stage on a stream: with a bar and an estimate where that is a terminal.

    Args:
        stream: stderr by default, so that stdout stays the command's own result.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr

    @contextmanager
    def stage(self, title: str, total: int | None = None, unit: str = "") -> Iterator[Advance]:
        """Tells that the stage began (on a terminal), how far it is, and how long it took."""
        started = time.monotonic()
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
            yield _nothing
        size = _size(total, unit) if total else ""
        seconds = time.monotonic() - started
        click.echo(f"  {title}{size}: {seconds:.1f} s", file=self._stream)

    def note(self, message: str) -> None:
        """One line."""
        click.echo(message, file=self._stream)


def _nothing(amount: int) -> None:
    """Takes how much more is done, and shows nothing of it."""


def _size(total: int, unit: str) -> str:
    return f" ({total / 2**20:,.1f} MiB)" if unit == BYTES else f" ({total:,} {unit})"
