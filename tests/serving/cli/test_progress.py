"""What long work says where there is no terminal."""

from __future__ import annotations

import io

from iblip.serving.cli.progress import Terminal


def test_a_stage_tells_now_and_then_how_far_it_is_and_how_long_the_rest_takes():
    now = 0.0
    stream = io.StringIO()
    progress = Terminal(stream, period_s=5, clock=lambda: now)
    with progress.stage("write", 400 << 20, "B") as advance:
        for _ in range(8):
            now += 2
            advance(50 << 20)
    assert stream.getvalue().splitlines() == [
        "  write: 38% of 400.0 MiB, 10 s left",
        "  write: 75% of 400.0 MiB, 4 s left",
        "  write (400.0 MiB): 16.0 s",
    ]


def test_a_long_rest_is_told_in_minutes_and_a_stage_without_total_once():
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
        "  trace: 6.0 s",
    ]
