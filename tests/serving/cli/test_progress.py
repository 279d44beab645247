"""What long work says: on a terminal in one line of whatever width, elsewhere now and then."""

from __future__ import annotations

import io
import re
import threading

import pytest

from iblip.serving.cli import progress as module
from iblip.serving.cli.progress import Terminal


def test_a_stage_tells_now_and_then_how_far_it_is_and_how_long_the_rest_takes():
    now = 0.0
    stream = io.StringIO()
    progress = Terminal(stream, period_s=5, clock=lambda: now)
    with progress.stage("write", 400_000_000, "B") as advance:
        for _ in range(8):
            now += 2
            advance(50_000_000)
    assert stream.getvalue().splitlines() == [
        "  write: 38% of 400.00 MB, 10 s left",
        "  write: 75% of 400.00 MB, 4 s left",
        "  write (400.00 MB): 16.0 s",
    ]


def test_a_long_rest_is_told_in_minutes_and_a_stage_without_total_by_its_seconds():
    now = 0.0
    stream = io.StringIO()
    progress = Terminal(stream, period_s=1, clock=lambda: now)
    with progress.stage("ask", 100, "examples") as advance:
        now = 3.0
        advance(2)
    with progress.stage("trace") as advance:
        now = 9.0
        advance(1)
    assert stream.getvalue().splitlines() == [
        "  ask: 2% of 100 examples, 2 min 27 s left",
        "  ask (100 examples): 3.0 s",
        "  trace: 6 s so far",
        "  trace: 6.0 s",
    ]


class Told(io.StringIO):
    """A stream that says when it is written to, and whether it is a terminal."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal
        self.more = threading.Semaphore(0)

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        self.more.release()
        return super().write(text)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_stage_that_reports_nothing_goes_on_telling(terminal, monkeypatch):
    monkeypatch.setattr(module, "FRAME_S", 0.01)
    stream = Told(terminal=terminal)
    with Terminal(stream, period_s=0.01).stage("trace qformer/model (2 of 5)"):
        for _ in range(4):
            assert stream.more.acquire(timeout=60)
    parts = re.split(r"[\r\n]+", stream.getvalue())
    assert sum(part.startswith("  trace qformer/model (2 of 5)") for part in parts) >= 3


@pytest.mark.parametrize("columns", [10, 20, 40, 60, 80, 200])
@pytest.mark.parametrize("total", [None, 200_000_000])
def test_no_line_is_wider_than_the_terminal(columns, total, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    now = 0.0
    stream = Told(terminal=True)
    progress = Terminal(stream, clock=lambda: now)
    with progress.stage("write blip2-opt-2.7b in float16", total, "B") as advance:
        for _ in range(20):
            now += 30
            advance(10_000_000)
    drawn = stream.getvalue().split("\r")
    lines = [part.partition("\x1b")[0] for part in drawn[:-1]]
    assert len(lines) > 15
    assert max(map(len, lines)) < columns
    assert all("\n" not in line for line in lines)
    if columns >= 60 and total:
        assert any("50%" in line and "left" in line for line in lines)
        assert any("##" in line for line in lines) == (columns >= 80)
    assert drawn[-1] == "\x1b[K" + "  write blip2-opt-2.7b in float16{}: 600.0 s\n".format(
        " (200.00 MB)" if total else ""
    )


def test_notes_end_their_lines_between_words_on_a_terminal_alone(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    message = (
        "engine: onnxruntime. This machine has no NVIDIA driver at /a/rather/long/path/of/some.file"
    )
    told = Told(terminal=True)
    Terminal(told).note(message)
    lines = told.getvalue().removeprefix("\r\x1b[K").splitlines()
    assert " ".join(line.strip() for line in lines) == message
    assert all(len(line) <= 30 or " " not in line.strip() for line in lines)
    piped = io.StringIO()
    Terminal(piped).note(message)
    assert piped.getvalue() == message + "\n"
