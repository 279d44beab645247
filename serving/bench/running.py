"""Sends requests to a server as a load has them arrive, and takes the times of each answer.

One event loop sends and reads all of them. `Outcome.sent_s` says how late each was sent: where that
is not little, this program was the bottleneck, or the machine that it shares with the server. All
times count from when a request was due, so a request that was sent late, or had to wait behind
others, is not made to look fast (no "coordinated omission").
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from iblip.export.errors import DeadlineError, IblipError, QueueFullError, UsageError
from iblip.export.progress import Progress
from iblip.serving.bench.loads import Closed, Open
from iblip.serving.bench.requests import Mix, Request, Requests
from iblip.serving.client.asynchronous import AsyncClient
from iblip.serving.client.patience import Timeout

Fate = Literal["answered", "refused", "timed_out", "failed"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one request; times are in seconds after it was due.

    Attributes:
        due_s: when it was due, in seconds from the start.
        sent_s: when it had been handed to gRPC.
        first_s: time of its first text; of its end where it has none.
        last_s: time of its end.
        gaps_s: times between two pieces of its text.
        tokens: number of tokens in its answer.
        fault: why it has no answer; `None` if it has one.
    """

    due_s: float
    sent_s: float
    first_s: float
    last_s: float
    gaps_s: tuple[float, ...] = ()
    tokens: int = 0
    fault: IblipError | None = None

    @property
    def fate(self) -> Fate:
        """`refused` is a full queue."""
        if self.fault is None:
            return "answered"
        if isinstance(self.fault, QueueFullError):
            return "refused"
        return "timed_out" if isinstance(self.fault, DeadlineError) else "failed"

    @property
    def token_s(self) -> float | None:
        """Seconds a token after the first text, on average; `None` without a second token."""
        return (self.last_s - self.first_s) / (self.tokens - 1) if self.tokens > 1 else None


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a server did under a load.

    Attributes:
        load: how requests arrived.
        outcomes: of all of them, in the order of their ends.
        seconds: from the start to the last end.
    """

    load: Closed | Open
    outcomes: Sequence[Outcome]
    seconds: float


class Source(Protocol):
    """Requests by their number, from 0."""

    def __getitem__(self, number: int) -> Request:
        """The request."""
        ...


class Bench:
    """A server that is asked; entering connects.

    Args:
        connection: arguments of the client.
        mix: what the requests are made of.
        progress: of every run.
        timeout_s: for each answer, after which it counts as timed out.

    Raises (on entering):
        IblipError: the server cannot be reached, or an image, a row or an option cannot be used.
    """

    def __init__(
        self, connection: Mapping[str, Any], mix: Mix, progress: Progress, *, timeout_s: float
    ) -> None:
        self._connection, self._mix, self._progress = connection, mix, progress
        self._timeout = Timeout(connect=0, total=timeout_s)

    def __enter__(self) -> Self:
        self._runner = asyncio.Runner().__enter__()
        try:
            self._client = AsyncClient(**self._connection, retries=0)
            self.contract = self._runner.run(self._client.contract())
            self._client.timeout = self._timeout
            self.requests = Requests(self._mix, self.contract)
        except BaseException:
            self._runner.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    def warm_up(self, requests: int) -> None:
        """Asks so many at once, and forgets their times.

        Raises:
            IblipError: none was answered.
        """
        if requests:
            load = Closed(concurrency=requests, requests=requests)
            with self._progress.stage("warm up"):
                run = self._runner.run(play(self._client, _WarmUp(self.requests), load))
            check_answered(run)

    def run(self, load: Closed | Open, title: str = "ask") -> Run:
        """Asks as the load has it.

        Raises:
            UsageError: a request cannot be asked of this server at all.
        """
        known = len(load.times()) if isinstance(load, Open) else load.requests
        with self._progress.stage(title, known, "requests") as advance:
            asked = play(self._client, self.requests, load, lambda: advance(1))
            return self._runner.run(asked)


class _WarmUp:
    """Requests that no run asks, so that a cache does not know the run's."""

    def __init__(self, requests: Source) -> None:
        self._requests = requests

    def __getitem__(self, number: int) -> Request:
        return self._requests[-1 - number]


def check_answered(run: Run) -> None:
    """Raises what went wrong where nothing was answered, and not because there was too much."""
    if not any(outcome.fate == "answered" for outcome in run.outcomes):
        for outcome in run.outcomes:
            if outcome.fate == "failed" and outcome.fault is not None:
                raise outcome.fault


async def play(
    client: AsyncClient,
    requests: Source,
    load: Closed | Open,
    ended: Callable[[], object] = lambda: None,
) -> Run:
    """Asks a server as a load has it.

    Args:
        client: without retries, so that what is refused counts as that.
        requests: number 0 is asked first.
        load: how they arrive.
        ended: called at the end of each request.

    Raises:
        UsageError: a request cannot be asked of this server at all.
    """
    outcomes: list[Outcome] = []
    started = time.perf_counter()

    async def ask(number: int, due_s: float) -> None:
        outcomes.append(await _ask(client, requests[number], due_s, started))
        ended()

    try:
        async with asyncio.TaskGroup() as group:
            if isinstance(load, Open):
                await _arrive(load, lambda n, due_s: group.create_task(ask(n, due_s)), started)
            else:
                numbers = _numbers(load, started)
                for _ in range(load.concurrency):
                    group.create_task(_call(numbers, ask, started))
    except ExceptionGroup as faults:
        raise faults.exceptions[0] from None
    return Run(load=load, outcomes=outcomes, seconds=time.perf_counter() - started)


async def _arrive(load: Open, send: Callable[[int, float], object], started: float) -> None:
    for number, due_s in enumerate(load.times()):
        await asyncio.sleep(max(0.0, started + due_s - time.perf_counter()))
        send(number, due_s)


def _numbers(load: Closed, started: float) -> Iterator[int]:
    for number in itertools.count() if load.requests is None else range(load.requests):
        if load.seconds is not None and time.perf_counter() - started >= load.seconds:
            return
        yield number


async def _call(
    numbers: Iterator[int], ask: Callable[[int, float], Awaitable[None]], started: float
) -> None:
    """One caller of a closed loop."""
    for number in numbers:
        await ask(number, time.perf_counter() - started)


async def _ask(client: AsyncClient, request: Request, due_s: float, started: float) -> Outcome:
    due = started + due_s
    times: list[float] = []
    sent_s: float | None = None
    tokens, fault = 0, None
    try:
        stream = client.stream(request.pixels, request.prompt, options=request.options)
        async with stream:
            sent_s = time.perf_counter() - due
            times.extend([time.perf_counter() - due async for _ in stream])
            tokens = (await stream.answer()).completion_tokens
    except UsageError:
        raise
    except IblipError as error:
        fault = error
    end = time.perf_counter() - due
    return Outcome(
        due_s=due_s,
        sent_s=end if sent_s is None else sent_s,
        first_s=times[0] if times else end,
        last_s=end,
        gaps_s=tuple(b - a for a, b in itertools.pairwise(times)),
        tokens=tokens,
        fault=fault,
    )
