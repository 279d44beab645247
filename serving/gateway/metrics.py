"""What the gateway counts. Few: Triton's metrics have the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from iblip.engines.language_model.histograms import SECONDS, Histogram
from iblip.serving.metrics import Family, text_from_status


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
    first: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    whole: Histogram = field(default_factory=lambda: Histogram(SECONDS))

    def text(self) -> str:
        """As Prometheus reads it."""
        return text_from_status(GATEWAY, self)


GATEWAY: Mapping[str, Family[Metrics]] = {
    "iblip_gateway_open_requests": Family(
        kind="gauge", help="Requests for answers that are open", read=lambda m: m.open
    ),
    "iblip_gateway_responses_total": Family(
        kind="counter",
        help="Requests for answers that have ended, by status",
        read=lambda m: m.responses,
        label="status",
    ),
    "iblip_gateway_tokens_total": Family(
        kind="counter",
        help="Tokens read and written, by kind",
        read=lambda m: m.tokens,
        label="kind",
    ),
    "iblip_gateway_first_text_seconds": Family(
        kind="histogram",
        help="Seconds until the first text of a stream",
        read=lambda m: m.first,
    ),
    "iblip_gateway_answer_seconds": Family(
        kind="histogram", help="Seconds until the end of an answer", read=lambda m: m.whole
    ),
}
"""By name."""
