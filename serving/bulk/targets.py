"""Who answers: a build in this process, or servers, each asked for as much as it has slots for."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from iblip.engines.language_model.keywords import Options
from iblip.engines.language_model.types import Answer
from iblip.export.errors import OptionError
from iblip.serving.client.compat import resolve_options, trim_answer
from iblip.serving.client.mapping import MOST_CONCURRENCY
from iblip.serving.client.patience import Timeout
from iblip.serving.wire.contract import ServerContract

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from iblip.engines.vision_cache.directory import CacheDirectory

PATIENCE = Timeout(connect=600.0, total=3600.0)
"""How long a server is waited for: while it is started again, and behind others' questions."""

AHEAD = 2
"""Questions under way for each that can run: the next ones are decoded and encoded meanwhile."""


class Target(Protocol):
    """Answers questions, several at once."""

    def contract(self) -> ServerContract:
        """Sizes, limits and identity of what answers."""
        ...

    def ask(
        self, pixels: npt.NDArray[np.uint8], prompt: str, options: Options, compat: str | None
    ) -> Answer:
        """One answer about `pixels`, uint8 `[images, height, width, 3]`."""
        ...

    def vision_cache_hits(self) -> int | None:
        """How many images were found encoded; `None` where that is not known, as of a server."""
        ...

    def close(self) -> None:
        """Ends what is under way."""


class ServerTarget:
    """A server; what it cannot take at once is sent again later.

    Args:
        connection: arguments of `Client`.
        timeout: for each question; see `Client`.
    """

    def __init__(self, connection: Mapping[str, Any], timeout: Timeout = PATIENCE) -> None:
        from iblip.serving.client.sync import Client

        self._client = Client(**connection, timeout=timeout)
        self.close = self._client.close

    def contract(self) -> ServerContract:
        """See `Target`. A server that does not run when the run begins is not waited for."""
        return self._client.contract(timeout=Timeout())

    def ask(
        self, pixels: npt.NDArray[np.uint8], prompt: str, options: Options, compat: str | None
    ) -> Answer:
        """See `Target`."""
        return self._client.ask(pixels, prompt, options=options, compat=compat, priority="bulk")

    def vision_cache_hits(self) -> int | None:
        """See `Target`."""
        return None


class BuildTarget:
    """A build in this process.

    Args:
        directory: of the build.
        threads: for one operator, on a CPU; `None` is the machine's.
        vision_cache: see `Pipeline`.
    """

    def __init__(
        self,
        directory: Path,
        threads: int | None = None,
        vision_cache: CacheDirectory | None = None,
    ) -> None:
        from iblip.engines.pipeline import Pipeline

        self._pipeline = Pipeline(directory, threads, vision_cache=vision_cache).__enter__()
        self._contract = ServerContract.from_manifest(self._pipeline.manifest)
        self._closed = threading.Lock()

    def contract(self) -> ServerContract:
        """See `Target`."""
        return self._contract

    def ask(
        self, pixels: npt.NDArray[np.uint8], prompt: str, options: Options, compat: str | None
    ) -> Answer:
        """See `Target`."""
        wanted, preset = resolve_options(self._contract, options, compat)
        return trim_answer(
            self._pipeline.submit(pixels, prompt, wanted, priority="bulk").result(), preset
        )

    def vision_cache_hits(self) -> int | None:
        """See `Target`."""
        return self._pipeline.vision_cache_status().hits

    def close(self) -> None:
        """Ends what is under way, and frees the engines; once."""
        if self._closed.acquire(blocking=False):
            self._pipeline.__exit__()


@contextmanager
def targets_of(
    connections: Sequence[Mapping[str, Any]],
    build: Path | None = None,
    threads: int | None = None,
    timeout: Timeout = PATIENCE,
    vision_cache: CacheDirectory | None = None,
) -> Iterator[list[Target]]:
    """A build in this process, or else servers, until the block ends.

    Args:
        connections: arguments of `Client`, for each server.
        build: its directory.
        threads: see `BuildTarget`.
        timeout: for each question to a server.
        vision_cache: of a build in this process; see `Pipeline`.
    """
    with ExitStack() as stack:
        targets: list[Target] = []
        if build is not None:
            targets.append(BuildTarget(build, threads, vision_cache))
        else:
            targets += [ServerTarget(connection, timeout) for connection in connections]
        for target in targets:
            stack.callback(target.close)
        yield targets


class Targets:
    """Several targets of one build, each asked as often as it has slots.

    Raises:
        OptionError: there are none, or they serve different builds.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        if not targets:
            raise OptionError("there is nothing to ask: expected a build, or the url of a server")
        self._targets = list(targets)
        self._running = [0] * len(self._targets)
        self._lock = threading.Lock()
        contracts = [target.contract() for target in self._targets]
        self.contract = contracts[0]
        self._limits = [contract.limits for contract in contracts]
        for other in contracts[1:]:
            mine, its = self.identity(), identity(other)
            if its != mine:
                raise OptionError(f"the servers have different builds: {mine}, {its}")

    def identity(self) -> dict[str, Any]:
        """What answers, JSON-ready."""
        return identity(self.contract)

    def concurrency(self, answers: int) -> int:
        """Questions to have under way.

        Args:
            answers: slots that each takes.
        """
        each = (
            min(max(1, limits.slots // max(1, answers)) * AHEAD, limits.queue)
            for limits in self._limits
        )
        return min(sum(each), MOST_CONCURRENCY)

    @contextmanager
    def least_busy(self) -> Iterator[Target]:
        """The target that has the least to do for its slots, until the block ends."""
        with self._lock:
            loads = [
                used / limits.slots
                for used, limits in zip(self._running, self._limits, strict=True)
            ]
            index = loads.index(min(loads))
            self._running[index] += 1
        try:
            yield self._targets[index]
        finally:
            with self._lock:
                self._running[index] -= 1

    def vision_cache_hits(self) -> int | None:
        """How many images were found encoded, by all; `None` where one does not know it."""
        hits = [target.vision_cache_hits() for target in self._targets]
        return None if None in hits else sum(filter(None, hits))

    def close(self) -> None:
        """Ends what is under way."""
        for target in self._targets:
            target.close()


def identity(contract: ServerContract) -> dict[str, Any]:
    """What a contract is of: the same answers may be expected where it is equal."""
    build = contract.build
    return {"name": build.name, "created": build.created, "precision": dict(build.precision)}
