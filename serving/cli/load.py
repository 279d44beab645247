"""Asks a server many questions at once, and takes the time of each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from iblip.export.progress import Progress

if TYPE_CHECKING:
    from iblip.serving.client import Client

NOISE = 256
"""Height and width of images of noise, in pixels; the client resizes them."""

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The times of one answer.

    Attributes:
        first_s: seconds until its first text; preparing and sending the image are included.
        whole_s: seconds until its end.
        tokens: that were generated.
    """

    first_s: float
    whole_s: float
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How fast a server answered.

    Attributes:
        concurrency: requests under way at once.
        seconds: from the first request to the last answer.
        timings: of all answers.
    """

    concurrency: int
    seconds: float
    timings: Sequence[Timing]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        tokens = sum(timing.tokens for timing in self.timings)
        return {
            "requests": len(self.timings),
            "concurrency": self.concurrency,
            "seconds": round(self.seconds, 3),
            "requests_a_second": round(len(self.timings) / self.seconds, 2),
            "tokens_a_second": round(tokens / self.seconds, 1),
            "first_text_s": _percentiles([timing.first_s for timing in self.timings]),
            "whole_answer_s": _percentiles([timing.whole_s for timing in self.timings]),
        }

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        data = self.to_json()
        yield (
            f"{data['requests']} requests, {self.concurrency} at once, in {self.seconds:.1f} s:"
            f" {data['requests_a_second']} requests and {data['tokens_a_second']} tokens a second"
        )
        yield f"  {'milliseconds':14}" + "".join(f"{f'p{point}':>8}" for point in PERCENTILES)
        for name, key in (("first text", "first_text_s"), ("whole answer", "whole_answer_s")):
            times = "".join(f"{seconds * 1000:8.0f}" for seconds in data[key].values())
            yield f"  {name:14}{times}"


def measure(
    connection: Mapping[str, Any],
    image: Path | None,
    prompt: str,
    progress: Progress,
    *,
    requests: int,
    concurrency: int,
    tokens: int,
) -> Figures:
    """Asks a server, after one question that does not count.

    Args:
        connection: arguments of the client.
        image: to ask about; `None` is noise, another image for each request, so that no server can
            have encoded it before.
        prompt: of every request.
        progress: advanced with each answer.
        requests: number of them, 1 or more.
        concurrency: how many are under way at once, 1 or more.
        tokens: of each answer.

    Raises:
        IblipError: an answer failed.
    """
    from iblip.serving.client import Client

    options = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    with Client(**connection) as client, ThreadPoolExecutor(concurrency) as pool:

        def ask(number: int) -> Timing:
            return _time(client, _noise(number) if image is None else image, prompt, options)

        ask(-1)
        started = time.monotonic()
        timings = []
        with progress.stage("ask", requests, "questions") as advance:
            for timing in pool.map(ask, range(requests)):
                timings.append(timing)
                advance(1)
        seconds = time.monotonic() - started
    return Figures(concurrency=concurrency, seconds=seconds, timings=timings)


def _time(client: Client, image: Any, prompt: str, options: Mapping[str, int]) -> Timing:
    started = time.monotonic()
    first_s = 0.0
    with client.stream(image, prompt, options=options) as stream:
        for _ in stream:
            first_s = first_s or time.monotonic() - started
        answer = stream.answer
    whole_s = time.monotonic() - started
    return Timing(first_s=first_s or whole_s, whole_s=whole_s, tokens=answer.completion_tokens)


def _noise(number: int) -> Any:
    """An image of its own for each number, uint8 `[height, width, 3]`."""
    generator = np.random.default_rng(number + 1)
    return generator.integers(0, 256, (NOISE, NOISE, 3), dtype=np.uint8)


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    return {f"p{point}": round(float(np.percentile(seconds, point)), 4) for point in PERCENTILES}
