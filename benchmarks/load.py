"""Arrivals at random through Triton: in batches, against the same load served one at a time.

Requests arrive as a Poisson process, with lengths and options of many kinds, whether or not those
before them are answered. Both servers get the same requests at the same times. The rate is between
what each of them was found to take in a short calibration: too much for one at a time, not too much
for a batch. A request takes one slot, because more would not fit a server that has one.
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

from benchmarks.arrivals import Asked, Got
from benchmarks.builds import build
from benchmarks.served import idle_metrics, served
from iblip.engines.language_model.options import GenerationOptions
from iblip.export.artifact.manifest import Manifest
from iblip.export.examples import Example, read_examples
from iblip.export.images import pixels_from_image
from iblip.serving.client import AsyncClient

SECONDS = 120.0

SLOTS = 8

QUEUE = 100_000
"""Long enough for the server that cannot keep up: nothing is to be lost."""

CALIBRATION = 96
"""Requests that find out what a server takes."""

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
        with served(directory, slots=slots, queue=QUEUE) as server:
            takes[name] = asyncio.run(_capacity(server.grpc_url, make))
    rate = (takes["batched"] * takes["one at a time"]) ** 0.5
    schedule = make.poisson(rate, seconds)
    got: dict[str, list[Got]] = {}
    figures: dict[str, Any] = {}
    for name, slots in at_once.items():
        with served(directory, slots=slots, queue=QUEUE) as server:
            asyncio.run(_warm_up(server.grpc_url, make))
            got[name] = asyncio.run(_play(server.grpc_url, schedule))
            left = idle_metrics(server)
        figures[name] = {
            "slots": slots,
            "takes_requests_per_s": round(takes[name], 1),
            **_figures(got[name]),
            "slots_used_at_the_end": left["iblip_slots_used"],
        }
    plot_load(Path(__file__).with_name(f"load-{checkpoint.name}.svg"), got)
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
    """Makes requests of many kinds, the same ones every time.

    Args:
        directory: of the build.
        examples: whose pictures and prompts are taken.
    """

    def __init__(self, directory: Path, examples: Sequence[Example]) -> None:
        preprocessing = Manifest.read(directory).preprocessing
        self._examples = [
            (pixels_from_image(example.image, preprocessing), example.prompt)
            for example in examples[:64]
        ]

    def poisson(self, rate: float, seconds: float) -> list[Asked]:
        """Arrivals over so many seconds, `rate` a second on average."""
        chance = random.Random(7)
        asked, at_s = [], chance.expovariate(rate)
        while at_s < seconds:
            asked.append(self.one(chance, at_s))
            at_s += chance.expovariate(rate)
        return asked

    def at_once(self, count: int, seed: int) -> list[Asked]:
        """So many, without times."""
        chance = random.Random(seed)
        return [self.one(chance, 0.0) for _ in range(count)]

    def one(self, chance: random.Random, at_s: float) -> Asked:
        """A request of one of the kinds."""
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
        return Asked(at_s=at_s, pixels=pixels, prompt=prompt, options=GenerationOptions(**options))


async def _capacity(url: str, make: Requests) -> float:
    """Requests per second that a server answers when there is always another."""
    async with AsyncClient(url) as client:
        limit = asyncio.Semaphore(CALIBRATION_AT_ONCE)

        async def ask(asked: Asked) -> None:
            async with limit:
                await _one(client, asked, time.perf_counter())

        await asyncio.gather(*(ask(asked) for asked in make.at_once(16, 1)))  # to warm up
        started = time.perf_counter()
        await asyncio.gather(*(ask(asked) for asked in make.at_once(CALIBRATION, 2)))
        return CALIBRATION / (time.perf_counter() - started)


async def _warm_up(url: str, make: Requests) -> None:
    async with AsyncClient(url) as client:
        now = time.perf_counter()
        await asyncio.gather(*(_one(client, asked, now) for asked in make.at_once(16, 1)))


async def _play(url: str, schedule: Sequence[Asked]) -> list[Got]:
    """Sends every request when its time has come, and waits for all ends."""
    async with AsyncClient(url) as client:
        await client.contract()
        started = time.perf_counter()
        tasks = []
        for asked in schedule:
            await asyncio.sleep(max(0.0, started + asked.at_s - time.perf_counter()))
            tasks.append(asyncio.create_task(_one(client, asked, started + asked.at_s)))
        return await asyncio.gather(*tasks)


async def _one(client: AsyncClient, asked: Asked, due: float) -> Got:
    times: list[float] = []
    tokens, error = 0, ""
    try:
        stream = await client.stream(asked.pixels, asked.prompt, options=asked.options)
        times.extend([time.perf_counter() - due async for _ in stream])
        tokens = (await stream.answer()).completion_tokens
    except Exception as fault:  # it is counted
        error = f"{type(fault).__name__}: {fault}"
    end = time.perf_counter() - due
    return Got(
        at_s=asked.at_s,
        first_s=times[0] if times else end,
        last_s=end,
        gaps_s=tuple(np.diff(times).tolist()),
        tokens=tokens,
        error=error,
    )


def _figures(got: Sequence[Got]) -> dict[str, Any]:
    whole = [one for one in got if not one.error]
    seconds = max(one.at_s + one.last_s for one in got)
    first = [one.first_s for one in whole]
    gaps = [gap for one in whole for gap in one.gaps_s]
    steps = [(one.last_s - one.first_s) / (one.tokens - 1) for one in whole if one.tokens > 1]
    return {
        "answered": len(whole),
        "lost": len(got) - len(whole),
        "errors": sorted({one.error for one in got if one.error})[:3],
        "tokens_per_s": round(sum(one.tokens for one in whole) / seconds, 1),
        "answers_per_s": round(len(whole) / seconds, 2),
        "seconds_until_the_last": round(seconds, 1),
        **_percentiles("first_text_ms", first),
        **_percentiles("between_tokens_ms", steps),
        **_percentiles("between_texts_ms", gaps),
    }


def _percentiles(name: str, values: Sequence[float]) -> dict[str, float]:
    p95 = statistics.quantiles(values, n=20)[-1]
    found = {"p50": statistics.median(values), "p95": p95}
    return {f"{name}_{key}": round(value * 1e3, 2) for key, value in found.items()}
