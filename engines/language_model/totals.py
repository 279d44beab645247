"""Counts of what an engine has done since it was opened."""

from __future__ import annotations

from threading import Lock
from typing import get_args

from iblip.engines.language_model.histograms import Distributions
from iblip.engines.language_model.types import Answer, EngineStatus, Outcome, Timing


class Totals:
    """Counts for an `EngineStatus`. A request is counted once, when it ends or is refused.

    Attributes:
        generated_tokens, prompt_tokens, cached_prompt_tokens: of all sequences. Only one thread
            adds to them, so that a step takes no lock.
    """

    def __init__(self) -> None:
        self.generated_tokens = 0
        self.prompt_tokens = 0
        self.cached_prompt_tokens = 0
        self._requests: dict[Outcome, int] = dict.fromkeys(get_args(Outcome), 0)
        self._queue_s = self._prefill_s = self._decode_s = 0.0
        self._distributions = Distributions()
        self._lock = Lock()

    def count_refused(self) -> None:
        """Counts a request that was refused by a full queue."""
        with self._lock:
            self._requests["refused"] += 1

    def count_started(self, queue_s: float) -> None:
        """Counts a request that has got its slots after so many seconds."""
        with self._lock:
            self._distributions.queue_s.add(queue_s)

    def count_first(self, seconds: float) -> None:
        """Counts a request whose answer begins, so many seconds after its arrival."""
        with self._lock:
            self._distributions.first_token_s.add(seconds)

    def count_step(self, rows: int) -> None:
        """Counts a step of so many sequences."""
        with self._lock:
            self._distributions.rows.add(rows)

    def count_ended(self, outcome: Outcome, timing: Timing, answer: Answer | None) -> None:
        """Counts a request that has ended, and adds up its times.

        Args:
            outcome: how it ended.
            timing: where its time went.
            answer: `None` where it has none.
        """
        with self._lock:
            self._requests[outcome] += 1
            self._queue_s += timing.queue_s
            self._prefill_s += timing.prefill_s
            self._decode_s += timing.decode_s
            if answer is not None and outcome != "cancelled":
                self._measure(answer, timing)

    def status(self, *, slots: int, slots_used: int, running: int, waiting: int) -> EngineStatus:
        """The engine's status: the given current figures, and the totals."""
        with self._lock:
            return EngineStatus(
                slots=slots,
                slots_used=slots_used,
                running=running,
                waiting=waiting,
                requests=dict(self._requests),
                generated_tokens=self.generated_tokens,
                prompt_tokens=self.prompt_tokens,
                cached_prompt_tokens=self.cached_prompt_tokens,
                queue_s=self._queue_s,
                prefill_s=self._prefill_s,
                decode_s=self._decode_s,
                distributions=self._distributions.copy(),
            )

    def _measure(self, answer: Answer, timing: Timing) -> None:
        into, lengths = self._distributions, [answer.completion_tokens]
        lengths += [other.completion_tokens for other in answer.others]
        into.request_s.add(timing.vision_s + timing.queue_s + timing.prefill_s + timing.decode_s)
        into.prompt_tokens.add(answer.prompt_tokens)
        for length in lengths:
            into.answer_tokens.add(length)
        if not answer.ranking and max(lengths) > 1:
            into.token_s.add(timing.decode_s / (max(lengths) - 1))
