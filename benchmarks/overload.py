"""More callers than a server takes: what it still writes, and how soon it refuses the others.

    python -m benchmarks overload [--against CHECKOUT]

Each caller asks again and again for streamed answers of one length, and waits a moment where it is
refused. With a second checkout both serve builds of their own, in turns, under the same callers,
who speak the wire and never ask for the server's contract.

The time of a refusal as a caller sees it contains the waiting of hundreds of callers for one
interpreter. So Triton's own figures are beside it: the mean time that a request waits before its
model takes it, and the mean time to a failure, where Triton itself counts one.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc.aio  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

from benchmarks.builds import build_of
from benchmarks.server_process import ROOT, ServerProcess
from iblip.engines.language_model.options import GenerationOptions
from iblip.export.artifact.manifest import Manifest
from iblip.export.errors import IblipError, QueueFullError
from iblip.export.examples import read_examples
from iblip.export.images import pixels_from_image
from iblip.serving.client.messages import AnswerReader, KeepAlive, channel_options, infer_request
from iblip.serving.client.protocol import Service

CLIENTS, SECONDS, TOKENS, ROUNDS = 400, 40.0, 64, 2

RETRY_S = 0.5
"""Seconds that a refused caller waits."""

WARM_UP_S = 5.0
"""Seconds at the start that are not counted."""

MODEL = "instructblip"

Question = tuple[npt.NDArray[np.uint8], str]
"""Pixels `[1, height, width, 3]`, and the prompt."""


def main(
    checkpoint: Path, scratch: Path, *, seconds: float = SECONDS, against: Path | None = None
) -> dict[str, Any]:
    """Figures of this checkout, and of the other: the median of each over the rounds."""
    checkouts = {"this checkout": ROOT}
    if against is not None:
        checkouts = {"before": against.resolve(), **checkouts}
    builds = {name: build_of(path, checkpoint, scratch) for name, path in checkouts.items()}
    questions = _questions(checkpoint, builds["this checkout"])
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for number in range(ROUNDS if against else 1):
        for name, path in checkouts.items():
            log = scratch / f"overload-{number}-{name.replace(' ', '-')}.log"
            with ServerProcess(builds[name], log, checkout=path) as server:
                overload = Overload(server, questions)
                rounds[name].append(asyncio.run(overload.run(seconds)))
    return {
        "clients": CLIENTS,
        "tokens": TOKENS,
        "seconds": seconds,
        **{
            name: {key: round(statistics.median(f[key] for f in figures), 2) for key in figures[0]}
            for name, figures in rounds.items()
        },
    }


def _questions(checkpoint: Path, directory: Path) -> list[Question]:
    preprocessing = Manifest.read(directory).preprocessing
    return [
        (pixels_from_image(example.image, preprocessing)[None], example.prompt)
        for example in read_examples(checkpoint / "examples", 64)
    ]


class Overload:
    """The callers of one server.

    Args:
        server: is ready.
        questions: asked in turn.
    """

    def __init__(self, server: ServerProcess, questions: Sequence[Question]) -> None:
        self._server, self._questions = server, questions
        self._from = self._end = 0.0
        self._tokens = self._answers = self._lost = 0
        self._means_ms = {"queue": 0.0, "fail": 0.0}
        self._first_s: list[float] = []
        self._refused_s: list[float] = []

    async def run(self, seconds: float) -> dict[str, float]:
        """Asks for so many seconds, after a warm-up."""
        self._from = time.perf_counter() + WARM_UP_S
        self._end = self._from + seconds
        async with grpc.aio.insecure_channel(
            self._server.urls["grpc"], options=channel_options(KeepAlive())
        ) as channel:
            stub = Service(channel)
            callers = [self._call(stub, number) for number in range(CLIENTS)]
            await asyncio.gather(self._read_statistics(), *callers)
        return {
            "tokens_per_s": self._tokens / seconds,
            "answers": self._answers,
            "lost": self._lost,
            "refused": len(self._refused_s),
            "first_text_s_p50": _median(self._first_s),
            "refused_ms_p50_of_callers": _median(self._refused_s) * 1e3,
            "queued_ms_mean_in_triton": self._means_ms["queue"],
            "failed_ms_mean_in_triton": self._means_ms["fail"],
        }

    async def _call(self, stub: Any, number: int) -> None:
        while (asked := time.perf_counter()) < self._end:
            number += CLIENTS
            try:
                first_s, tokens = await self._ask(stub, number)
            except QueueFullError:
                if asked >= self._from:
                    self._refused_s.append(time.perf_counter() - asked)
                await asyncio.sleep(RETRY_S)
            except (IblipError, grpc.RpcError):
                self._lost += 1
                await asyncio.sleep(RETRY_S)
            else:
                if self._from <= time.perf_counter() < self._end:
                    self._answers += 1
                    self._tokens += tokens
                    self._first_s.append(first_s)

    async def _ask(self, stub: Any, number: int) -> tuple[float, int]:
        """Seconds until the first text, and the number of tokens, of one answer."""
        pixels, prompt = self._questions[number % len(self._questions)]
        options = GenerationOptions(min_new_tokens=TOKENS, max_new_tokens=TOKENS)
        request = infer_request(pixels, prompt, options, model=MODEL, timeout_s=None, stream=True)
        started, first_s = time.perf_counter(), 0.0
        reader = AnswerReader(MODEL)
        async for response in stub.ModelStreamInfer(request):
            if reader.feed(response) and not first_s:
                first_s = time.perf_counter() - started
        return first_s, reader.answer().completion_tokens

    async def _read_statistics(self) -> None:
        await asyncio.sleep(self._from - time.perf_counter())
        before = await asyncio.to_thread(self._statistics)
        await asyncio.sleep(self._end - time.perf_counter())
        after = await asyncio.to_thread(self._statistics)
        for name in self._means_ms:
            count, ns = (int(after[name][key]) - int(before[name][key]) for key in ("count", "ns"))
            self._means_ms[name] = ns / max(1, count) / 1e6

    def _statistics(self) -> dict[str, dict[str, Any]]:
        """Triton's `count` and `ns`, nanoseconds, of the model's requests so far, by phase."""
        url = f"http://{self._server.urls['http'].removeprefix('http://')}/v2/models/{MODEL}/stats"
        with urllib.request.urlopen(url) as response:
            (stats,) = json.loads(response.read())["model_stats"]
        phases: dict[str, dict[str, Any]] = stats["inference_stats"]
        return phases


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else 0.0
