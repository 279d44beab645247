"""Random arrivals through Triton: served in batches, and the same load served one at a time.

Requests arrive as a Poisson process, with many kinds of lengths and options, whether or not earlier
ones have been answered. Both servers get the same requests at the same times. The rate lies between
the capacities that a short calibration finds: too high for one at a time, not too high for batches.
A request takes one slot, because a server with a single slot has no more.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.builds import build
from benchmarks.served import idle_metrics, serve
from iblip.engines.language_model.options import GenerationOptions
from iblip.export.artifact.manifest import Manifest
from iblip.export.examples import Example, read_examples
from iblip.export.images import pixels_from_image
from iblip.serving.bench.loads import Closed, Open
from iblip.serving.bench.requests import Request
from iblip.serving.bench.running import Outcome, Run, play
from iblip.serving.client import AsyncClient
from iblip.serving.client.patience import ONE_ATTEMPT

SECONDS = 120.0

SLOTS = 8

QUEUE = 100_000
"""Long enough for the server that cannot keep up, so that no request is refused."""

WARM_UP = Closed(concurrency=16, requests=16)

CALIBRATION = Closed(concurrency=16, requests=96)
"""The load that measures the capacity of a server."""


def main(checkpoint: Path, scratch: Path, *, seconds: float = SECONDS) -> dict[str, Any]:
    """Figures of both servers, and a plot beside the results."""
    from benchmarks.plots import plot_load

    directory = build(checkpoint, scratch)
    requests = Requests(directory, read_examples(checkpoint / "examples"))
    at_once = {"batched": SLOTS, "one at a time": 1}
    takes = {}
    for name, slots in at_once.items():
        with serve(directory, slots=slots, queue=QUEUE) as server:
            takes[name] = capacity(server.grpc_url, requests)
    rate = (takes["batched"] * takes["one at a time"]) ** 0.5
    load = Open(rate=rate, seconds=seconds, seed=7)
    outcomes: dict[str, Sequence[Outcome]] = {}
    figures: dict[str, Any] = {}
    for name, slots in at_once.items():
        with serve(directory, slots=slots, queue=QUEUE) as server:
            outcomes[name] = asyncio.run(play_warm(server.grpc_url, requests, [load]))[0].outcomes
            left = idle_metrics(server)
        figures[name] = {
            "slots": slots,
            "takes_requests_per_s": round(takes[name], 1),
            **_figures(outcomes[name]),
            "slots_used_at_the_end": left["iblip_slots_used"],
        }
    plot_load(Path(__file__).with_name(f"load-{checkpoint.name}.png"), outcomes)
    return {
        "seconds": seconds,
        "requests": len(load.times()),
        "arrivals_per_s": round(rate, 1),
        **figures,
        "ratio": {
            name: round(figures["batched"][name] / figures["one at a time"][name], 3)
            for name in (
                "tokens_per_s",
                "first_text_ms_p50",
                "first_text_ms_p95",
                "between_tokens_ms_p50",
                "between_tokens_ms_p95",
            )
        },
    }


class Requests:
    """Requests of many kinds, by their number.

    Args:
        directory: of the build.
        examples: their images and prompts are used.
    """

    def __init__(self, directory: Path, examples: Sequence[Example]) -> None:
        preprocessing = Manifest.read(directory).preprocessing
        self._examples = [
            (pixels_from_image(example.image, preprocessing)[None], example.prompt)
            for example in examples[:64]
        ]

    def __getitem__(self, number: int) -> Request:
        """The request of a number."""
        chance = random.Random(number)
        pixels, prompt = chance.choice(self._examples)
        length = chance.choice((8, 16, 32, 64, 128))
        kinds: Sequence[dict[str, Any]] = (
            {"max_new_tokens": length},
            {"min_new_tokens": length, "max_new_tokens": length},
            {"min_new_tokens": length, "max_new_tokens": length, "logprobs": 3},
            {"min_new_tokens": length, "max_new_tokens": length, "repetition_penalty": 1.3},
            {"min_new_tokens": length, "max_new_tokens": length, "temperature": 1.0, "top_p": 0.9},
            {"min_new_tokens": length, "max_new_tokens": length, "temperature": 2.0, "top_k": 50},
        )
        options = dict(chance.choice(kinds), seed=chance.randrange(2**31))
        return Request(pixels=pixels, prompt=prompt, options=GenerationOptions(**options))


def capacity(url: str, requests: Requests) -> float:
    """Requests per second that a server answers when more are always waiting."""
    run = asyncio.run(play_warm(url, requests, [CALIBRATION]))[0]
    return len(run.outcomes) / run.seconds


async def play_warm(url: str, requests: Requests, loads: Sequence[Closed | Open]) -> list[Run]:
    """Warms a server up, and asks as each load has it."""
    async with AsyncClient(url, timeout=ONE_ATTEMPT, retries=0) as client:
        await play(client, requests, WARM_UP)
        return [await play(client, requests, load) for load in loads]


def _figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    answered = [outcome for outcome in outcomes if outcome.fate == "answered"]
    seconds = max(outcome.due_s + outcome.last_s for outcome in outcomes)
    first = [outcome.first_s for outcome in answered]
    gaps = [gap for outcome in answered for gap in outcome.gaps_s]
    steps = [outcome.token_s for outcome in answered if outcome.token_s is not None]
    return {
        "answered": len(answered),
        "lost": len(outcomes) - len(answered),
        "errors": sorted({str(outcome.fault) for outcome in outcomes if outcome.fault})[:3],
        "tokens_per_s": round(sum(outcome.tokens for outcome in answered) / seconds, 1),
        "answers_per_s": round(len(answered) / seconds, 2),
        "seconds_until_the_last": round(seconds, 1),
        **_percentiles("first_text_ms", first),
        **_percentiles("between_tokens_ms", steps),
        **_percentiles("between_texts_ms", gaps),
    }


def _percentiles(name: str, values: Sequence[float]) -> dict[str, float]:
    p95 = statistics.quantiles(values, n=20)[-1]
    quantiles = {"p50": statistics.median(values), "p95": p95}
    return {f"{name}_{key}": round(value * 1e3, 2) for key, value in quantiles.items()}
