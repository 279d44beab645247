"""Counts of what an engine has done since it was opened."""

from __future__ import annotations

from threading import Lock
from typing import get_args

from iblip.engines.language_model.types import EngineStatus, Outcome, Timing


class Totals:
    """Counts for an `EngineStatus`. A request is counted once, when it ends or is refused.

    Attributes:
        generated_tokens, prompt_tokens: of all sequences. Only one thread adds to them, so that a
            step takes no lock.
    """

    def __init__(self) -> None:
        self.generated_tokens = 0
        self.prompt_tokens = 0
        self._requests: dict[Outcome, int] = dict.fromkeys(get_args(Outcome), 0)
        self._queue_s = self._prefill_s = self._decode_s = 0.0
        self._lock = Lock()

    def count_refused(self) -> None:
        """Counts a request that was refused by a full queue."""
        with self._lock:
            self._requests["refused"] += 1

    def count_ended(self, outcome: Outcome, timing: Timing) -> None:
        """Counts a request that has ended, and adds up its times."""
        with self._lock:
            self._requests[outcome] += 1
            self._queue_s += timing.queue_s
            self._prefill_s += timing.prefill_s
            self._decode_s += timing.decode_s

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
                queue_s=self._queue_s,
                prefill_s=self._prefill_s,
                decode_s=self._decode_s,
            )
