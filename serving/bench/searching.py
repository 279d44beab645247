"""The highest rate of arrivals at which a server meets an objective."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from iblip.export.errors import OptionError
from iblip.serving.bench.figures import Figures
from iblip.serving.bench.loads import Closed, Open
from iblip.serving.bench.objective import Objective
from iblip.serving.bench.running import Bench, check_answered

PRECISION = 0.05
"""How far apart, as a share, the highest rate that meets it and the lowest that does not may be."""

FEWEST = 10
"""Requests of the shortest run: no rate is tried at which fewer are to be expected."""

DOUBLINGS = 4
"""How often a rate is doubled, at most."""

CONFIRMING = 1
"""Seed of the arrivals that confirm a rate; those of the search have 0."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a search found.

    Attributes:
        found: figures at the highest rate that met the objective, twice; `None` if none did.
        capacity: answers a second in a closed loop, where the search began.
        tried: every run, in order.
    """

    found: Figures | None
    capacity: float
    tried: list[Figures] = field(default_factory=list)

    @property
    def rate(self) -> float | None:
        """The rate that was found, in requests a second."""
        return None if self.found is None else rate_of(self.found)

    @property
    def is_bounded(self) -> bool:
        """Whether a higher rate than the one that was found missed the objective."""
        return any(not one.meets and rate_of(one) >= (self.rate or 0) for one in self.tried)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "rate": None if self.rate is None else round(self.rate, 3),
            "capacity": round(self.capacity, 2),
            "tried": [
                {"rate": round(rate_of(one), 3), "meets": one.meets, **_few(one.to_json())}
                for one in self.tried
            ],
        }


def rate_of(figures: Figures) -> float:
    """Arrivals a second of a run in an open loop."""
    assert isinstance(figures.run.load, Open)
    return figures.run.load.rate


def check_searchable(objective: Objective | None) -> Objective:
    """Returns the objective.

    Raises:
        OptionError: there is none, or any rate may meet it because requests may wait for ever.
    """
    if objective is None:
        raise OptionError("--search needs --slo, such as --slo ttft=500ms,itl=50ms")
    if not objective.bounds_waiting:
        raise OptionError(
            f"the SLO is {objective}: requests may then wait for ever, so every rate meets it."
            " Give ttft or e2e as well."
        )
    return objective


def search(bench: Bench, objective: Objective, *, seconds: float, concurrency: int) -> Search:
    """Finds the highest rate that meets an objective.

    It begins at the rate of a closed loop, doubles or halves that until it has a rate that meets
    the objective and one that does not, and then bisects. All of these runs have the same bursts
    (`Open.seed`). Which answers are in time is partly chance, so rates that met it are asked again
    with other bursts, the highest first, until one does.

    Args:
        bench: the server, warmed up.
        objective: one that `check_searchable` returns.
        seconds: of arrivals, for each rate.
        concurrency: of the closed loop.

    Raises:
        IblipError: nothing was answered, or a request cannot be asked of this server at all.
    """
    closed = bench.run(Closed(concurrency=concurrency, seconds=seconds), "closed loop")
    check_answered(closed)
    capacity = Figures(closed).answers_per_s
    tried: list[Figures] = []

    def meets(rate: float, seed: int = 0) -> bool:
        load = Open(rate=rate, seconds=seconds, seed=seed)
        title = f"{rate:.3g} requests a second" + (", again" if seed else "")
        run = bench.run(load, title)
        check_answered(run)
        figures = Figures(run, objective)
        tried.append(figures)
        return figures.meets

    passed = highest_rates(meets, capacity, lowest=FEWEST / seconds)
    confirmed = next((rate for rate in passed if meets(rate, CONFIRMING)), None)
    found = None if confirmed is None else tried[-1]
    return Search(found=found, capacity=capacity, tried=tried)


def highest_rates(meets: Callable[[float], bool], start: float, *, lowest: float) -> list[float]:
    """The rates that met an objective, highest first; the next higher one tried did not.

    Args:
        meets: whether a rate does.
        start: the first to try.
        lowest: no rate below is tried.
    """
    rate = max(start, lowest)
    passed, low, high = list[float](), 0.0, math.inf
    for _ in range(DOUBLINGS + 1):
        if not meets(rate):
            high = rate
            break
        passed.append(low := rate)
        rate *= 2
    while not low and high > lowest:
        rate = max(high / 2, lowest)
        if meets(rate):
            passed.append(low := rate)
        else:
            high = rate
    while low and high / low > 1 + PRECISION and high < math.inf:
        rate = math.sqrt(low * high)
        if meets(rate):
            passed.append(low := rate)
        else:
            high = rate
    return sorted(passed, reverse=True)


def _few(document: dict[str, Any]) -> dict[str, Any]:
    names = ("requests", "answered", "within_slo", "goodput", "first_text_s", "token_s")
    return {name: document[name] for name in (*names, "whole_answer_s", "sent_s")}
