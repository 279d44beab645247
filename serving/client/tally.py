"""How far a map has come: counted as rows are answered, and shown on stderr or to a function."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sized
from dataclasses import dataclass
from threading import Lock
from typing import TextIO

PERIODS_S = (0.1, 5.0)
"""Least seconds between two views of it: on a terminal, and elsewhere."""


@dataclass(frozen=True, kw_only=True)
class MapProgress:
    """How far a map has come.

    Attributes:
        done: rows that have been answered or have failed.
        failed: those of them that have failed.
        total: all rows; `None` where `rows` does not know its length.
        elapsed_s: seconds since the first row was read.
    """

    done: int
    failed: int
    total: int | None
    elapsed_s: float

    def __str__(self) -> str:
        of = "" if self.total is None else f" of {self.total:,}"
        failed = f" ({self.failed:,} failed)" if self.failed else ""
        return f"rows done: {self.done:,}{of}{failed}, {self._rate}{self._left}"

    @property
    def _rate(self) -> str:
        rate = self.done / self.elapsed_s if self.elapsed_s > 0 else 0.0
        return f"{rate:.1f} a second" if rate >= 1 else f"{rate * 60:.1f} a minute"

    @property
    def _left(self) -> str:
        if self.total is None or not 0 < self.done < self.total:
            return ""
        seconds = max(1, round(self.elapsed_s * (self.total - self.done) / self.done))
        minutes, seconds = divmod(seconds, 60)
        hours, minutes = divmod(minutes, 60)
        parts = (f"{hours} h {minutes} min", f"{minutes} min {seconds} s", f"{seconds} s")
        return f", {parts[0 if hours else 1 if minutes else 2]} left"


Watcher = Callable[[MapProgress], object]
"""Called after each row, in the thread that has answered it, never twice at the same time."""


class Tally:
    """Counts rows, and tells a watcher.

    Args:
        total: all rows, if that is known.
        watcher: told after each row, and last when the map has ended or was left.
    """

    def __init__(self, total: int | None, watcher: Watcher | None) -> None:
        self._total, self._watcher = total, watcher
        self._done = self._failed = 0
        self._started: float | None = None
        self._lock = Lock()

    @classmethod
    def of(cls, rows: object, progress: bool | Watcher) -> Tally:
        """The tally of `rows`, shown on stderr where `progress` is true."""
        total = len(rows) if isinstance(rows, Sized) else None
        if callable(progress):
            return cls(total, progress)
        return cls(total, Line(sys.stderr) if progress else None)

    def start(self) -> None:
        """Begins to count seconds."""
        self._started = time.monotonic()

    def add(self, *, failed: bool) -> None:
        """Counts one row."""
        with self._lock:
            self._done += 1
            self._failed += failed
            if self._watcher is not None:
                self._watcher(self._progress())

    def close(self) -> None:
        """Ends what is shown."""
        if isinstance(self._watcher, Line):
            self._watcher.close(self._progress())

    def _progress(self) -> MapProgress:
        elapsed_s = time.monotonic() - self._started if self._started is not None else 0.0
        return MapProgress(
            done=self._done, failed=self._failed, total=self._total, elapsed_s=elapsed_s
        )


class Line:
    """Shows a map on a stream: one line that changes on a terminal, a line now and then elsewhere.

    Args:
        stream: such as stderr.
        clock: seconds since some fixed moment.
    """

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._is_terminal = stream.isatty()
        self._period_s = PERIODS_S[0 if self._is_terminal else 1]
        self._shown = clock()

    def __call__(self, progress: MapProgress) -> None:
        """Shows it, unless that was done a moment ago."""
        now = self._clock()
        if now - self._shown >= self._period_s:
            self._shown = now
            self._write(progress, end="" if self._is_terminal else "\n")

    def close(self, progress: MapProgress) -> None:
        """Shows how it ended."""
        self._write(progress, end="\n")

    def _write(self, progress: MapProgress, *, end: str) -> None:
        text = str(progress)
        if self._is_terminal:
            columns = shutil.get_terminal_size().columns - 1
            text = f"\r\x1b[2K{text[:columns]}"
        self._stream.write(text + end)
        self._stream.flush()
