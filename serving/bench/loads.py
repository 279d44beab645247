"""When requests arrive: as answers allow (closed loop), or at times of their own (open loop)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from iblip.export.errors import OptionError

MOST = 1_000_000
"""Requests of a run in an open loop, at most."""


@dataclass(frozen=True, kw_only=True)
class Closed:
    """Each caller asks again once it has its answer.

    Attributes:
        concurrency: callers.
        requests: of all callers together; `None` is as many as fit into `seconds`.
        seconds: after which none asks again; `None` is no limit.
    """

    concurrency: int
    requests: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Open:
    """Requests arrive as a Poisson process, whether or not earlier ones have been answered.

    Attributes:
        rate: requests a second, on average.
        seconds: for which they arrive.
        seed: of their times. With one seed, another rate only stretches the times, so that rates
            are compared on the same bursts.

    Raises:
        OptionError: less than one request is to be expected, or more than `MOST`.
    """

    rate: float
    seconds: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.rate * self.seconds <= MOST:
            raise OptionError(
                f"{self.rate:g} requests a second for {self.seconds:g} s are"
                f" {self.rate * self.seconds:g} requests; expected 1 to {MOST:,}"
            )

    def times(self) -> list[float]:
        """When each request arrives, in seconds from the start; at least one does."""
        chance = random.Random(self.seed)
        times = [chance.expovariate(1.0) / self.rate]
        while times[-1] < self.seconds:
            times.append(times[-1] + chance.expovariate(1.0) / self.rate)
        return times[:-1] or times
