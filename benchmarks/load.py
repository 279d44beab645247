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
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.arrivals import Arrival, Outcome
from benchmarks.builds import build
from benchmarks.served import idle_metrics, serve
from iblip.engines.language_model.options import GenerationOptions
from iblip.export.artifact.manifest import Manifest
from iblip.export.examples import Example, read_examples
from iblip.export.images import pixels_from_image
from iblip.serving.client import AsyncClient
from iblip.serving.client.patience import ONE_ATTEMPT

SECONDS = 120.0

SLOTS = 8

QUEUE = 100_000
"""Long enough for the server that cannot keep up, so that no request is refused."""

CALIBRATION = 96
"""Requests that measure the capacity of a server."""

CALIBRATION_AT_ONCE = 16


def main(checkpoint: Path, scratch: Path, *, seconds: float = SECONDS) -> dict[str, Any]:
    """Figures of both servers, and a plot beside the results."""
    from benchmarks.plots import plot_load

    directory = build(checkpoint, scratch)
    examples = read_examples(checkpoint / "examples")
    make = Requests(directory, examples)
    at_once = {"batched": SLOTS, "one at a time": 1}
    takes = {}
    for name, slots in at_once.items():
        with serve(directory, slots=slots, queue=QUEUE) as server:
            takes[name] = asyncio.run(capacity(server.grpc_url, make))
    rate = (takes["batched"] * takes["one at a time"]) ** 0.5
    schedule = make.poisson(rate, seconds)
    outcomes: dict[str, list[Outcome]] = {}
    figures: dict[str, Any] = {}
    for name, slots in at_once.items():
        with serve(directory, slots=slots, queue=QUEUE) as server:
            asyncio.run(_warm_up(server.grpc_url, make))
            outcomes[name] = asyncio.run(play(server.grpc_url, schedule))
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
        "requests": len(schedule),
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
    """Draws requests of many kinds, the same ones every time.

    Args:
        directory: of the build.
        examples: their images and prompts are used.
    """

    def __init__(self, directory: Path, examples: Sequence[Example]) -> None:
        preprocessing = Manifest.read(directory).preprocessing
        self._examples = [
            (pixels_from_image(example.image, preprocessing), example.prompt)
            for example in examples[:64]
        ]

    def poisson(self, rate: float, seconds: float) -> list[Arrival]:
        """Arrivals over `seconds`, on average `rate` per second."""
        chance = random.Random(7)
        arrivals, at_s = [], chance.expovariate(rate)
        while at_s < seconds:
            arrivals.append(self.sample(chance, at_s))
            at_s += chance.expovariate(rate)
        return arrivals

    def at_once(self, count: int, seed: int) -> list[Arrival]:
        """`count` requests that all arrive at time 0."""
        chance = random.Random(seed)
        return [self.sample(chance, 0.0) for _ in range(count)]

    def sample(self, chance: random.Random, at_s: float) -> Arrival:
        """A random request."""
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
        return Arrival(
            at_s=at_s, pixels=pixels, prompt=prompt, options=GenerationOptions(**options)
        )


async def capacity(url: str, make: Requests) -> float:
    """Requests per second that a server answers when more are always waiting."""
    async with AsyncClient(url, timeout=ONE_ATTEMPT, retries=0) as client:
        limit = asyncio.Semaphore(CALIBRATION_AT_ONCE)

        async def ask(arrival: Arrival) -> None:
            async with limit:
                await _send(client, arrival, time.perf_counter())

        await asyncio.gather(*(ask(arrival) for arrival in make.at_once(16, 1)))  # to warm up
        started = time.perf_counter()
        await asyncio.gather(*(ask(arrival) for arrival in make.at_once(CALIBRATION, 2)))
        return CALIBRATION / (time.perf_counter() - started)


async def _warm_up(url: str, make: Requests) -> None:
    async with AsyncClient(url, timeout=ONE_ATTEMPT, retries=0) as client:
        now = time.perf_counter()
        await asyncio.gather(*(_send(client, arrival, now) for arrival in make.at_once(16, 1)))


async def play(url: str, schedule: Sequence[Arrival]) -> list[Outcome]:
    """Sends every request when it is due, and waits for all outcomes."""
    async with AsyncClient(url, timeout=ONE_ATTEMPT, retries=0) as client:
        await client.contract()
        started = time.perf_counter()
        tasks = []
        for arrival in schedule:
            await asyncio.sleep(max(0.0, started + arrival.at_s - time.perf_counter()))
            tasks.append(asyncio.create_task(_send(client, arrival, started + arrival.at_s)))
        return await asyncio.gather(*tasks)


async def _send(client: AsyncClient, arrival: Arrival, due: float) -> Outcome:
    times: list[float] = []
    tokens, error = 0, ""
    try:
        stream = await client.stream(arrival.pixels, arrival.prompt, options=arrival.options)
        times.extend([time.perf_counter() - due async for _ in stream])
        tokens = (await stream.answer()).completion_tokens
    except Exception as fault:  # counted as an error
        error = f"{type(fault).__name__}: {fault}"
    end = time.perf_counter() - due
    return Outcome(
        at_s=arrival.at_s,
        first_s=times[0] if times else end,
        last_s=end,
        gaps_s=tuple(np.diff(times).tolist()),
        tokens=tokens,
        error=error,
    )


def _figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    answered = [outcome for outcome in outcomes if not outcome.error]
    seconds = max(outcome.at_s + outcome.last_s for outcome in outcomes)
    first = [outcome.first_s for outcome in answered]
    gaps = [gap for outcome in answered for gap in outcome.gaps_s]
    steps = [
        (outcome.last_s - outcome.first_s) / (outcome.tokens - 1)
        for outcome in answered
        if outcome.tokens > 1
    ]
    return {
        "answered": len(answered),
        "lost": len(outcomes) - len(answered),
        "errors": sorted({outcome.error for outcome in outcomes if outcome.error})[:3],
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
