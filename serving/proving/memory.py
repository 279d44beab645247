"""`memory`: what is held after a few requests and after many, some of them cancelled."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from iblip.engines.pipeline import Pipeline
from iblip.serving.proving.machine import free_memory
from iblip.serving.proving.record import Fact
from iblip.serving.proving.requests import request_of
from iblip.serving.proving.subject import NothingToMeasureError, Subject

FIRST, ALL = 20, 200
"""Requests after which memory is read."""

CANCELLED = 5
"""Every so many requests one is cancelled while it is answered."""

AT_ONCE = 8
"""Requests that wait or run at a time."""

TOKENS = 12
"""Most tokens of an answer."""

GROWTH = 64 << 20
"""Bytes that may be held more after `ALL` requests than after `FIRST`: arenas grow with the
longest prompt that they have seen, a leak grows with every request."""

SECONDS = 90
"""After this time the rest of the requests is left out."""


def measure_memory(subject: Subject) -> Iterator[Fact]:
    """Bytes held before, after `FIRST` and after `ALL` requests."""
    on_gpu = subject.on_gpu or "vllm" in subject.engines.values()
    whose = "on the GPU" if on_gpu else "in this process"
    if on_gpu:
        free = free_memory()
    elif not Path("/proc/self/statm").exists():
        raise NothingToMeasureError("this system does not tell what a process holds")

    def held() -> int:
        return free - free_memory() if on_gpu else _resident()

    with subject.open() as pipeline:
        yield Fact(name=f"bytes held {whose}, open", value=held())
        _ask(subject, pipeline, range(FIRST), None)
        after_first = held()
        yield Fact(name=f"bytes held {whose} after {FIRST} requests", value=after_first)
        count = FIRST + _ask(subject, pipeline, range(FIRST, ALL), time.monotonic() + SECONDS)
        after_all = held()
        yield Fact(name=f"bytes held {whose} after {count} requests", value=after_all)
        yield Fact(
            name=f"growth from {FIRST} to {count} requests, bytes",
            value=after_all - after_first,
            limit=GROWTH,
        )


def _ask(subject: Subject, pipeline: Pipeline, numbers: range, end: float | None) -> int:
    """Asks these requests, `AT_ONCE` at a time; returns how many, fewer once `end` has passed."""
    asked = 0
    for start in range(numbers.start, numbers.stop, AT_ONCE):
        if end is not None and time.monotonic() > end:
            break
        batch = range(start, min(start + AT_ONCE, numbers.stop))
        running = [
            (number, request_of(subject, number, tokens=TOKENS).submit(pipeline))
            for number in batch
        ]
        for number, generation in running:
            if number % CANCELLED == 0:
                generation.cancel()
        for _, generation in running:
            generation.result()
        asked += len(batch)
    return asked


def _resident() -> int:
    """Bytes of this process that lie in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
