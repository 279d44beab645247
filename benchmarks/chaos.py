"""Mixed load while every half minute something is killed, paused, disconnected or fed with rubbish.

`iblip serve` has to keep its promises: no wrong answer, no request without an end, ready again
soon, memory and descriptors flat. Every complete answer is compared with the one that the same
request got alone, in this process, beforehand.

What ends or stops a process is every third event: a server that fails again within a minute is
started again later each time, by design.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import statistics
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.builds import build
from benchmarks.hostile import Target, http_question, send_hostile, stop_reading, vanish
from benchmarks.server_process import TRITON, ServerProcess
from benchmarks.soak import OPTIONS, Question, is_same, questions_of
from iblip.export.artifact.manifest import Manifest
from iblip.export.errors import DeadlineError, IblipError
from iblip.export.examples import read_examples
from iblip.serving.client import AsyncClient, CancelledError
from iblip.serving.wire.answers import answer_from_finish
from iblip.serving.wire.names import UNARY
from iblip.serving.wire.parameters import parameters_from_options

MINUTES = 30.0
EVERY_S = 30.0
CALLERS = 8

PATIENCE_S, GRACE_S = 60.0, 30.0
"""Seconds that a caller allows for an answer, and after which one without an end is given up."""

RETRY_S = 0.5
UNREAD_S = 20.0
PAUSES_S = (3, 10, 20)
PROBE_S, SAMPLE_S = 0.1, 2.0
READY_S = 120.0
"""Seconds to wait at the end for a server that is not ready."""

RANKING = {"candidates": ("red", "blue", "a 3", "a 7", "two digits")}

NO_END = "NO END"


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happens to the server.

    Attributes:
        kind: `killed`, `paused`, `disconnected`, `rubbish` or `unread`.
        what: in a few words.
        work: does it, in a thread, until it is over.
    """

    kind: str
    what: str
    work: Callable[[], Any]


def main(checkpoint: Path, scratch: Path, *, minutes: float = MINUTES) -> dict[str, Any]:
    """Counts of outcomes, the events and what they cost, memory; and a plot beside the results."""
    import matplotlib as mpl  # noqa: F401 - before half an hour has passed, not after it

    from benchmarks.plots import plot_chaos

    directory = build(checkpoint, scratch)
    images = (1, min(2, Manifest.read(directory).limits.images))
    examples = read_examples(checkpoint / "examples")
    questions = questions_of(directory, examples, (*OPTIONS, RANKING), images)
    log = scratch / f"{checkpoint.name}-chaos.log"
    with ServerProcess(directory, log, "--max-restarts=1000") as server:
        chaos = Chaos(server, Manifest.read(directory), questions)
        asyncio.run(chaos.run(minutes * 60))
        figures = chaos.figures()
    plot_chaos(Path(__file__).with_name(f"chaos-{checkpoint.name}.png"), chaos.samples, chaos.told)
    click.echo(_table(chaos.told))
    return {"minutes": minutes, **figures}


class Chaos:
    """One run.

    Args:
        server: is ready.
        manifest: of its build.
        questions: with their answers.

    Attributes:
        told: what happened: `at_s`, `kind`, `what`, `noticed_s` and `ready_again_s`, seconds after
            the event, 0 where the server stayed ready.
        samples: seconds, MiB and descriptors, while the server was ready.
    """

    def __init__(
        self, server: ServerProcess, manifest: Manifest, questions: Sequence[Question]
    ) -> None:
        self._server, self._questions = server, questions
        self._target = Target(urls=server.urls, manifest=manifest, pixels=questions[0].pixels[:1])
        self._chance = random.Random(5)
        self._counts: Counter[str] = Counter()
        self._hostile: Counter[str] = Counter()
        self._readiness: list[tuple[float, bool]] = []
        self._started = time.monotonic()
        self._over = asyncio.Event()
        self.told: list[dict[str, Any]] = []
        self.samples: list[tuple[float, float, float]] = []

    async def run(self, seconds: float) -> None:
        """Asks, harms and measures for so many seconds, and until all requests have ended."""
        self._started = time.monotonic()
        watching = [asyncio.create_task(self._probe()), asyncio.create_task(self._sample())]
        callers = [asyncio.create_task(self._call()) for _ in range(CALLERS)]
        for event in self._events():
            await asyncio.sleep(EVERY_S / 3 if not self.told else self._until_next())
            if self._now() + EVERY_S / 3 > seconds or not self._server.is_running:
                break
            at_s = self._now()
            self.told.append({"at_s": round(at_s, 1), "kind": event.kind, "what": event.what})
            await asyncio.to_thread(event.work)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_S):
                while not await asyncio.to_thread(self._server.is_ready):
                    await asyncio.sleep(PROBE_S)
        await asyncio.sleep(EVERY_S / 3)  # in which it answers again
        self._over.set()
        await asyncio.gather(*callers)
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        self._time_events()

    def figures(self) -> dict[str, Any]:
        """What the run has shown."""
        again = [event["ready_again_s"] for event in self.told if event["ready_again_s"]]
        return {
            "requests": sum(self._counts.values()),
            "outcomes": dict(sorted(self._counts.items())),
            "wrong": sum(n for name, n in self._counts.items() if name.startswith("WRONG")),
            "without_an_end": self._counts[NO_END],
            "events": len(self.told),
            "restarts": len(again),
            "ready_again_s": {
                "median": round(statistics.median(again), 1) if again else 0.0,
                "longest": max(again, default=0.0),
            },
            "still_served": self._server.is_ready(),
            "memory_mib": self._growth(1),
            "descriptors": self._growth(2),
            "hostile": dict(sorted(self._hostile.items())),
            "each_event": self.told,
        }

    def _now(self) -> float:
        return time.monotonic() - self._started

    def _until_next(self) -> float:
        return max(0.0, float(self.told[-1]["at_s"]) + EVERY_S - self._now())

    def _events(self) -> Iterator[Event]:
        """One that ends or stops a process, two that do not, and so on."""
        models = [name for name in self._server.pids() if name != TRITON]
        harsh = [Event(kind="killed", what=name, work=self._killer(name)) for name in models]
        harsh.append(Event(kind="killed", what=TRITON, work=self._killer(TRITON)))
        harsh += [self._pause(name, seconds) for name in (*models, TRITON) for seconds in PAUSES_S]
        url = self._server.urls["grpc"]
        mild = [
            Event(kind="disconnected", what="a caller, killed", work=lambda: vanish(url)),
            Event(kind="rubbish", what="hostile requests", work=self._send_hostile),
            Event(kind="unread", what="a reader stopped", work=lambda: stop_reading(url, UNREAD_S)),
        ]
        self._chance.shuffle(harsh)
        self._chance.shuffle(mild)
        gentle = itertools.cycle(mild)
        for event in itertools.cycle(harsh):
            yield from (event, next(gentle), next(gentle))

    def _killer(self, name: str) -> Callable[[], None]:
        def kill() -> None:
            self._signal(name, signal.SIGKILL)

        return kill

    def _pause(self, name: str, seconds: float) -> Event:
        def pause() -> None:
            self._signal(name, signal.SIGSTOP, for_s=seconds)

        return Event(kind="paused", what=f"{name}, {seconds:g} s", work=pause)

    def _signal(self, name: str, number: signal.Signals, for_s: float = 0.0) -> None:
        pid = self._server.pids().get(name)
        with contextlib.suppress(ProcessLookupError):
            if pid is not None:
                os.kill(pid, number)
                time.sleep(for_s)
                if for_s:
                    os.kill(pid, signal.SIGCONT)

    def _send_hostile(self) -> None:
        for name, outcome in send_hostile(self._target).items():
            self._hostile[f"{name}: {outcome}"] += 1

    async def _call(self) -> None:
        """A caller who asks one thing after another, each in another way."""
        ways: Mapping[str, Callable[[AsyncClient, Question], Awaitable[str]]] = {
            "streamed": self._stream,
            "whole": self._ask,
            "bulk": lambda client, asked: self._ask(client, asked, priority="bulk"),
            "over HTTP": self._ask_over_http,
            "cancelled": self._cancel,
        }
        async with AsyncClient(self._server.urls["grpc"], timeout=PATIENCE_S, retries=0) as client:
            while not self._over.is_set():
                way = self._chance.choice(list(ways))
                asked = self._chance.choice(self._questions)
                try:
                    async with asyncio.timeout(PATIENCE_S + GRACE_S):
                        outcome = await ways[way](client, asked)
                except TimeoutError:
                    outcome = NO_END
                except DeadlineError:
                    outcome = "late"
                except (IblipError, OSError) as error:
                    outcome = f"told: {type(error).__name__}"
                self._counts[outcome] += 1
                if outcome not in ("right", "cancelled"):
                    await asyncio.sleep(RETRY_S)

    async def _ask(self, client: AsyncClient, asked: Question, **how: Any) -> str:
        answer = await client.ask(asked.pixels, asked.prompt, options=asked.options, **how)
        return _judged(asked, is_same(answer, asked.answer))

    async def _stream(self, client: AsyncClient, asked: Question) -> str:
        stream = await client.stream(asked.pixels, asked.prompt, options=asked.options)
        text = "".join([piece async for piece in stream])
        answer = await stream.answer()
        return _judged(asked, is_same(answer, asked.answer) and text == answer.text)

    async def _cancel(self, client: AsyncClient, asked: Question) -> str:
        stream = await client.stream(asked.pixels, asked.prompt, options=asked.options)
        with contextlib.suppress(CancelledError):
            await anext(stream, None)
            await stream.cancel()
        return "cancelled"

    async def _ask_over_http(self, client: AsyncClient, asked: Question) -> str:
        def post() -> dict[str, Any]:
            body = http_question(asked.pixels, asked.prompt)
            body["parameters"] = parameters_from_options(asked.options)
            url = f"http://{self._server.urls['http'].removeprefix('http://')}"
            request = urllib.request.Request(
                f"{url}/v2/models/{UNARY}/infer",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
                reply: dict[str, Any] = json.loads(response.read())
            return reply

        reply = await asyncio.to_thread(post)
        tensors = {output["name"]: output["data"][0] for output in reply["outputs"]}
        answer = answer_from_finish(tensors["text"], tensors["finish"])
        return _judged(asked, is_same(answer, asked.answer))

    async def _probe(self) -> None:
        while True:
            ready = await asyncio.to_thread(self._server.is_ready)
            self._readiness.append((self._now(), ready))
            await asyncio.sleep(PROBE_S)

    async def _sample(self) -> None:
        while True:
            if self._readiness and self._readiness[-1][1]:
                mib, descriptors = await asyncio.to_thread(self._server.usage)
                self.samples.append((round(self._now(), 1), round(mib, 1), descriptors))
            await asyncio.sleep(SAMPLE_S)

    def _time_events(self) -> None:
        ends = [*(event["at_s"] for event in self.told[1:]), self._now()]
        for event, end in zip(self.told, ends, strict=True):
            unready = [
                at for at, ready in self._readiness if event["at_s"] <= at < end and not ready
            ]
            again = [at for at, ready in self._readiness if unready and at > unready[-1] and ready]
            since = float(event["at_s"])
            event["noticed_s"] = round(unready[0] - since, 1) if unready else 0.0
            event["ready_again_s"] = round(again[0] - since, 1) if again else 0.0
            event["lost"] = bool(unready) and not again

    def _growth(self, column: int) -> dict[str, float]:
        """Medians of the second and the last fifth of the samples."""
        values = [sample[column] for sample in self.samples]
        fifth = max(1, len(values) // 5)
        before = statistics.median(values[fifth : 2 * fifth] or values)
        after = statistics.median(values[-fifth:])
        return {"before": before, "after": after, "growth": round(after / before - 1, 4)}


def _judged(asked: Question, right: bool) -> str:
    return "right" if right else f"WRONG: {asked.prompt!r}, {asked.options}"


def _table(events: Sequence[Mapping[str, Any]]) -> str:
    rows = [f"{'at s':>7} {'noticed':>8} {'ready again':>12}  what"]
    rows += [
        f"{event['at_s']:>7} {event['noticed_s']:>8} {event['ready_again_s']:>12}  "
        f"{event['kind']}: {event['what']}"
        for event in events
    ]
    return "\n".join(rows)
