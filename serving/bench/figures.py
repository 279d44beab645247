"""Percentiles, rates and goodput of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from iblip.serving.bench.loads import Closed, Open
from iblip.serving.bench.objective import Objective
from iblip.serving.bench.running import Outcome, Run

PERCENTILES = (50, 90, 95, 99)

LATE_SHARE = 0.1
"""Share of the median time to the first text from which the generator's own delay is reported."""

LATE_S = 0.01
"""Seconds below which that delay is not reported."""

Percentiles = dict[str, float | None]
"""`p50` and so on to seconds; `None` where there is no time."""


@dataclass(frozen=True)
class Figures:
    """What a run amounts to.

    Attributes:
        run: what was sent and came back.
        objective: that answers must meet; `None` if there is none.
    """

    run: Run
    objective: Objective | None = None

    @cached_property
    def answered(self) -> Sequence[Outcome]:
        """The requests that have an answer."""
        return [outcome for outcome in self.run.outcomes if outcome.fate == "answered"]

    @property
    def answers_per_s(self) -> float:
        """Answers a second, from the start to the last end."""
        return len(self.answered) / self.run.seconds

    @property
    def tokens_per_s(self) -> float:
        """Tokens of answers a second."""
        return sum(outcome.tokens for outcome in self.answered) / self.run.seconds

    @cached_property
    def _good(self) -> int:
        """Requests that meet the objective."""
        assert self.objective is not None
        return sum(map(self.objective.is_met_by, self.run.outcomes))

    @property
    def share(self) -> float | None:
        """Share of all requests, refused ones too, that meet the objective."""
        return None if self.objective is None else self._good / len(self.run.outcomes)

    @property
    def goodput(self) -> float | None:
        """Requests a second that meet the objective."""
        return None if self.objective is None else self._good / self.run.seconds

    @property
    def meets(self) -> bool:
        """Whether enough of the requests meet the objective, which is given."""
        assert self.objective is not None
        assert self.share is not None
        return self.share >= self.objective.share  # 55 of 100 is 0.55, which 0.55 * 100 is not

    @cached_property
    def first_s(self) -> Percentiles:
        """Times to the first text."""
        return percentiles(outcome.first_s for outcome in self.answered)

    @cached_property
    def token_s(self) -> Percentiles:
        """Times a token after the first text, one for each answer."""
        times = (outcome.token_s for outcome in self.answered)
        return percentiles(seconds for seconds in times if seconds is not None)

    @cached_property
    def last_s(self) -> Percentiles:
        """Times to the end of an answer."""
        return percentiles(outcome.last_s for outcome in self.answered)

    @cached_property
    def sent_s(self) -> Percentiles:
        """How long after they were due requests were handed to gRPC."""
        return percentiles(outcome.sent_s for outcome in self.run.outcomes)

    @property
    def advice(self) -> str | None:
        """What to say where the generator was late; `None` where it was not."""
        late_s, first_s = self.sent_s["p99"], self.first_s["p50"]
        if late_s is None or first_s is None or late_s <= max(LATE_S, LATE_SHARE * first_s):
            return None
        return (
            f"one request in a hundred was sent {late_s * 1000:.0f} ms late or more: this machine,"
            " which sends them, has too little time of its processors. The times include that; ask"
            " from another machine to see the server's own."
        )

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        load, fates = self.run.load, Counter(outcome.fate for outcome in self.run.outcomes)
        faults = {str(o.fault): None for o in self.run.outcomes if o.fate == "failed"}
        return {
            "requests": len(self.run.outcomes),
            "concurrency": load.concurrency if isinstance(load, Closed) else None,
            "rate": round(load.rate, 3) if isinstance(load, Open) else None,
            "seconds": round(self.run.seconds, 3),
            "answered": fates["answered"],
            "refused": fates["refused"],
            "timed_out": fates["timed_out"],
            "failed": fates["failed"],
            "faults": list(faults)[:3],
            "requests_a_second": round(self.answers_per_s, 2),
            "tokens_a_second": round(self.tokens_per_s, 1),
            "first_text_s": self.first_s,
            "token_s": self.token_s,
            "whole_answer_s": self.last_s,
            "sent_s": self.sent_s,
            "slo": None if self.objective is None else self.objective.to_json(),
            "within_slo": None if self.share is None else round(self.share, 4),
            "goodput": None if self.goodput is None else round(self.goodput, 2),
        }


def percentiles(seconds: Iterable[float]) -> Percentiles:
    """Of times, interpolated between neighbours as numpy does."""
    times = list(seconds)
    if not times:
        return {f"p{point}": None for point in PERCENTILES}
    values = np.percentile(times, PERCENTILES)
    return {f"p{p}": round(float(s), 5) for p, s in zip(PERCENTILES, values, strict=True)}
