"""A service level objective: how long an answer may take, and how many must keep to it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Self

from iblip.export.errors import OptionError
from iblip.export.messages import did_you_mean
from iblip.serving.bench.running import Outcome

TIMES = ("ttft", "itl", "e2e")
"""Names of the times: to the first text, a token after it, of the whole answer."""

UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}

SHARE = 0.99
"""Of all requests, unless the caller says otherwise."""

_TIME = re.compile(r"(?P<number>\d{1,9}(?:\.\d{1,9})?)(?P<unit>us|ms|s)")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What an answer must keep to. `None` is no limit.

    Attributes:
        ttft_s: most seconds until its first text ("time to first token").
        itl_s: most seconds a token after that, on average ("inter-token latency").
        e2e_s: most seconds until its end.
        share: of all requests that must be answered so, above 0, at most 1.

    Raises:
        OptionError: there is no limit, one is not above 0, or the share is out of range.
    """

    ttft_s: float | None = None
    itl_s: float | None = None
    e2e_s: float | None = None
    share: float = SHARE

    def __post_init__(self) -> None:
        limits = [self.ttft_s, self.itl_s, self.e2e_s]
        if not any(limits) or any(limit is not None and not limit > 0 for limit in limits):
            raise OptionError("an SLO needs at least one time above 0, such as ttft=500ms")
        if not 0 < self.share <= 1:
            raise OptionError(f"the share of the SLO is {self.share:g}; expected above 0 to 1")

    @classmethod
    def parse(cls, text: str, share: float = SHARE) -> Self:
        """Reads `ttft=500ms,itl=50ms,e2e=10s`.

        Raises:
            OptionError: a name or a time cannot be read, or one is given twice.
        """
        limits: dict[str, float] = {}
        for part in text.split(","):
            name, _, value = (word.strip() for word in part.partition("="))
            match = _TIME.fullmatch(value)
            if name not in TIMES or match is None:
                hint = "" if name in TIMES else did_you_mean(name, TIMES)
                raise OptionError(
                    f"the SLO has {part.strip()[:80]!r}; expected NAME=TIME with one of"
                    f" {', '.join(TIMES)} and a unit, such as ttft=500ms,itl=50ms,e2e=10s.{hint}"
                )
            if f"{name}_s" in limits:
                raise OptionError(f"the SLO names {name} twice; give it once")
            limits[f"{name}_s"] = float(match["number"]) * UNITS[match["unit"]]
        return cls(**limits, share=share)

    @property
    def bounds_waiting(self) -> bool:
        """Whether it limits how long a request may wait before its answer begins."""
        return self.ttft_s is not None or self.e2e_s is not None

    def is_met_by(self, outcome: Outcome) -> bool:
        """Whether a request was answered, and within every limit."""
        times = (
            (outcome.first_s, self.ttft_s),
            (outcome.token_s, self.itl_s),
            (outcome.last_s, self.e2e_s),
        )
        return outcome.fate == "answered" and all(
            seconds is None or limit is None or seconds <= limit for seconds, limit in times
        )

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**{f"{name}_s": getattr(self, f"{name}_s") for name in TIMES}, "share": self.share}

    def __str__(self) -> str:
        limits = {name: getattr(self, f"{name}_s") for name in TIMES}
        return " ".join(f"{name}≤{_text(limit)}" for name, limit in limits.items() if limit)


def _text(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms"
