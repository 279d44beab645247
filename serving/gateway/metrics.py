"""What the gateway counts, in Prometheus' text format. Few: Triton's metrics have the rest."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of the histograms."""


@dataclass
class Histogram:
    """How often a time was at most so many seconds."""

    name: str
    help: str
    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        """Counts one time."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.total += seconds

    def lines(self) -> list[str]:
        """As Prometheus reads it."""
        lines, below = _head(self.name, self.help, "histogram"), 0
        for bound, count in zip((*SECONDS, float("inf")), self.counts, strict=True):
            below += count
            edge = "+Inf" if bound == float("inf") else f"{bound:g}"
            lines.append(f'{self.name}_bucket{{le="{edge}"}} {below}')
        return [*lines, f"{self.name}_sum {self.total:.6f}", f"{self.name}_count {below}"]


@dataclass
class Metrics:
    """All counts of a gateway since it was started.

    Attributes:
        open: requests for answers that are open.
        responses: ended ones, by status; 499 where the caller has gone.
        tokens: by `prompt` and `completion`.
        first: seconds until the first text of a stream.
        whole: seconds of a request that was answered.
    """

    open: int = 0
    responses: Counter[int] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    first: Histogram = field(
        default_factory=lambda: Histogram(
            "iblip_gateway_first_text_seconds", "Until the first text of a stream."
        )
    )
    whole: Histogram = field(
        default_factory=lambda: Histogram(
            "iblip_gateway_answer_seconds", "Until the end of an answer."
        )
    )

    def text(self) -> str:
        """As Prometheus reads it."""
        name = "iblip_gateway_open_requests"
        lines = [
            *_head(name, "Requests for answers that are open.", "gauge"),
            f"{name} {self.open}",
        ]
        for name, help_, label, counts in (
            ("iblip_gateway_responses_total", "By status.", "status", self.responses),
            ("iblip_gateway_tokens_total", "Read and written.", "kind", self.tokens),
        ):
            lines += _head(name, help_, "counter")
            lines += [f'{name}{{{label}="{key}"}} {counts[key]}' for key in sorted(counts)]  # type: ignore[index]
        return "\n".join([*lines, *self.first.lines(), *self.whole.lines(), ""])


def _head(name: str, text: str, kind: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
