"""The status of engine and decoders as metrics that Prometheus reads from Triton's own endpoint.

Knows neither Triton nor any engine: statuses come in, and values go out through the metric families
that the caller creates.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Generic, Protocol

from iblip.engines.language_model.histograms import Histogram
from iblip.engines.language_model.types import EngineStatus
from iblip.engines.vision_cache.cache import VisionCacheStatus
from iblip.serving.decoding.pool import DecodingStatus
from iblip.serving.metrics import Family, Kind, S

logger = logging.getLogger(__name__)

PERIOD_S = 0.25
"""Seconds between two updates of the metrics."""

RATE_S = 5.0
"""Seconds over which tokens per second are averaged."""


class Metric(Protocol):
    """One time series, as in Triton's Python backend."""

    def increment(self, value: float) -> None:
        """Adds a value of 0 or more to a counter."""

    def set(self, value: float) -> None:
        """Sets a gauge."""

    def observe(self, value: float) -> None:
        """Adds a value to a histogram."""


class MakeSeries(Protocol):
    """Creates a series of a family."""

    def __call__(self, labels: Mapping[str, str], **buckets: list[float]) -> Metric:
        """A histogram has its upper bounds as `buckets`."""
        ...


MakeFamily = Callable[[str, str, Kind], MakeSeries]
"""From name, help and kind of a metric family to what creates its series. It raises `KeyError` for
a kind that the server does not have, or that the build's `model.py` does not know."""


RATE = "iblip_generated_tokens_per_second"

FAMILIES: Mapping[str, Family[EngineStatus]] = {
    "iblip_slots": Family(
        kind="gauge", help="Sequences that can run at once", read=lambda s: s.slots
    ),
    "iblip_slots_used": Family(
        kind="gauge", help="Sequences that are running", read=lambda s: s.slots_used
    ),
    "iblip_requests_running": Family(
        kind="gauge", help="Requests that are being answered", read=lambda s: s.running
    ),
    "iblip_requests_waiting": Family(
        kind="gauge", help="Requests in the queue", read=lambda s: s.waiting
    ),
    "iblip_requests_total": Family(
        kind="counter",
        help="Requests that have ended, by reason",
        read=lambda s: s.requests,
        label="reason",
    ),
    "iblip_generated_tokens_total": Family(
        kind="counter",
        help="Tokens generated, in every answer and beam",
        read=lambda s: s.generated_tokens,
    ),
    "iblip_prompt_tokens_total": Family(
        kind="counter",
        help="Prompt positions that were read, images included",
        read=lambda s: s.prompt_tokens,
    ),
    "iblip_cached_prompt_tokens_total": Family(
        kind="counter",
        help="Prompt positions that were taken from the prefix cache instead of being read",
        read=lambda s: s.cached_prompt_tokens,
    ),
    "iblip_queue_seconds_total": Family(
        kind="counter", help="Seconds that ended requests have waited", read=lambda s: s.queue_s
    ),
    "iblip_prefill_seconds_total": Family(
        kind="counter",
        help="Seconds from the end of the wait until the prompt was read, for ended requests",
        read=lambda s: s.prefill_s,
    ),
    "iblip_decode_seconds_total": Family(
        kind="counter",
        help="Seconds from the first token to the end, for ended requests",
        read=lambda s: s.decode_s,
    ),
    "iblip_queue_wait_seconds": Family(
        kind="histogram",
        help="Seconds that a request waited for slots",
        read=lambda s: s.distributions.queue_s,
    ),
    "iblip_time_to_first_token_seconds": Family(
        kind="histogram",
        help="Seconds from a request's arrival to its first token",
        read=lambda s: s.distributions.first_token_s,
    ),
    "iblip_time_per_output_token_seconds": Family(
        kind="histogram",
        help="Seconds per token after the first, the mean of each answer",
        read=lambda s: s.distributions.token_s,
    ),
    "iblip_request_duration_seconds": Family(
        kind="histogram",
        help="Seconds from a request's arrival to the end of its answer",
        read=lambda s: s.distributions.request_s,
    ),
    "iblip_request_prompt_tokens": Family(
        kind="histogram",
        help="Prompt positions of a request, images included",
        read=lambda s: s.distributions.prompt_tokens,
    ),
    "iblip_answer_tokens": Family(
        kind="histogram", help="Tokens of an answer", read=lambda s: s.distributions.answer_tokens
    ),
    "iblip_decode_batch_rows": Family(
        kind="histogram",
        help="Sequences of a step of the language model",
        read=lambda s: s.distributions.rows,
    ),
}
"""Of the engine, by name. `RATE` is another, which takes more than one status."""

DECODING: Mapping[str, Family[DecodingStatus]] = {
    "iblip_images_decoded_total": Family(
        kind="counter", help="Encoded images that were decoded", read=lambda s: s.decoded
    ),
    "iblip_images_remembered_total": Family(
        kind="counter",
        help="Encoded images that had been decoded before",
        read=lambda s: s.remembered,
    ),
    "iblip_images_refused_total": Family(
        kind="counter",
        help="Encoded images that could not be decoded, or not within the limits",
        read=lambda s: s.refused,
    ),
}
"""Of the decoders, by name."""

VISION_CACHE: Mapping[str, Family[VisionCacheStatus]] = {
    "iblip_vision_cache_hits_total": Family(
        kind="counter",
        help="Images that were found in the vision cache",
        read=lambda s: s.hits,
    ),
    "iblip_vision_cache_misses_total": Family(
        kind="counter",
        help="Images that were not in the vision cache",
        read=lambda s: s.misses,
    ),
    "iblip_vision_cache_bytes": Family(
        kind="gauge", help="Bytes of the vision cache's files", read=lambda s: s.bytes
    ),
}
"""Of the vision cache on the disk, by name; where there is one."""


class StatusMetrics(Generic[S]):
    """Metrics that follow a status.

    Args:
        families: by name.
        make_family: see `MakeFamily`.
        labels: for every series.
    """

    def __init__(
        self,
        families: Mapping[str, Family[S]],
        make_family: MakeFamily,
        labels: Mapping[str, str],
    ) -> None:
        self._labels = dict(labels)
        self._makers: dict[str, MakeSeries] = {}
        for name, family in families.items():
            with suppress(KeyError):
                self._makers[name] = make_family(name, family.help, family.kind)
        self._families = {name: families[name] for name in self._makers}
        if missing := families.keys() - self._makers.keys():
            logger.warning(
                "there are no metrics %s: their kind needs a later Triton (2.51 has it), and a "
                "build that was made with this version",
                ", ".join(sorted(missing)),
            )
        self._series: dict[tuple[str, str], Metric] = {}
        self._last: dict[tuple[str, str], float] = {}
        self._seen: dict[str, Histogram] = {}

    def update(self, status: S, now: float) -> None:
        """Updates every series whose value has changed.

        Args:
            status: as it is now.
            now: seconds of a monotonic clock.
        """
        for name, family in self._families.items():
            read = family.read(status)
            if isinstance(read, Histogram):
                self._observe(name, read)
            elif isinstance(read, Mapping):
                for label, value in read.items():
                    self._set(name, family, label, value)
            else:
                self._set(name, family, "", read)

    def clear(self) -> None:
        """Releases every series, then the families: Triton requires this order."""
        self._series.clear()
        self._makers.clear()

    def _observe(self, name: str, now: Histogram) -> None:
        if name not in self._seen:
            bounds = [float(bound) for bound in now.bounds]
            self._series[name, ""] = self._makers[name](self._labels, buckets=bounds)
        for value in now.values_since(self._seen.get(name)):
            self._series[name, ""].observe(value)
        self._seen[name] = now

    def _set(self, name: str, family: Family[S], label: str, value: float) -> None:
        key = (name, label)
        if key not in self._series:
            labels = {**self._labels, family.label: label} if family.label else self._labels
            self._series[key] = self._makers[name](labels)
        elif value == self._last[key]:
            return
        if family.kind == "counter":
            self._series[key].increment(value - self._last.get(key, 0))
        else:
            self._series[key].set(value)
        self._last[key] = value


class EngineMetrics(StatusMetrics[EngineStatus]):
    """Metrics that follow an engine's status.

    Args:
        make_family: see `MakeFamily`.
        labels: for every series.
    """

    def __init__(self, make_family: MakeFamily, labels: Mapping[str, str]) -> None:
        super().__init__(FAMILIES, make_family, labels)
        text = f"Tokens generated per second, over the last {RATE_S:g} seconds"
        self._makers[RATE] = make_family(RATE, text, "gauge")
        self._rate = self._makers[RATE](self._labels)
        self._last_rate = -1.0
        self._past: deque[tuple[float, int]] = deque()

    def update(self, status: EngineStatus, now: float) -> None:
        """Updates every series whose value has changed; see the base class."""
        super().update(status, now)
        rate = self._tokens_per_second(status.generated_tokens, now)
        if rate != self._last_rate:
            self._rate.set(rate)
            self._last_rate = rate

    def clear(self) -> None:
        """Releases every series, then the families; see the base class."""
        del self._rate
        super().clear()

    def _tokens_per_second(self, tokens: int, now: float) -> float:
        self._past.append((now, tokens))
        while len(self._past) > 2 and self._past[1][0] <= now - RATE_S:
            self._past.popleft()
        since, before = self._past[0]
        return (tokens - before) / (now - since) if now > since else 0.0


class MetricsThread(Generic[S]):
    """Updates metrics until it is closed.

    Args:
        metrics: the metrics to update.
        status: returns the status that they follow.
        period_s: seconds between two updates.
    """

    def __init__(
        self,
        metrics: StatusMetrics[S],
        status: Callable[[], S],
        *,
        period_s: float = PERIOD_S,
    ) -> None:
        self._metrics = metrics
        self._status = status
        self._period_s = period_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, and clears the metrics."""
        self._closed.set()
        self._thread.join()
        self._metrics.clear()

    def _run(self) -> None:
        while not self._closed.wait(self._period_s):
            try:
                self._metrics.update(self._status(), time.monotonic())
            except Exception:  # a server without metrics still answers
                logger.exception("metrics stop: they could not be updated")
                return
