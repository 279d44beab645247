"""A submitted request: the engine writes events at one end, the caller reads them at the other."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from queue import Empty, SimpleQueue
from threading import Lock

from iblip.engines.language_model.decoding.decoding import Decoding
from iblip.engines.language_model.totals import Totals
from iblip.engines.language_model.types import (
    Answer,
    Event,
    GenerationRequest,
    Outcome,
    TextDelta,
    Timing,
)
from iblip.engines.types import PromptIds
from iblip.export.errors import DeadlineError, IblipError, UsageError

End = Answer | IblipError
"""The last event of a request: its answer, or the error that ended it."""


class Pending:
    """The engine's end of a request. Every method may be called from any thread.

    Args:
        request: as submitted.
        answer: returns its answer so far.
        totals: where its end is counted.

    Attributes:
        request: as submitted.
        cancelled: whether the caller has cancelled it.
        cached_prompt_tokens: as in its `Answer`.
    """

    def __init__(
        self,
        request: GenerationRequest,
        answer: Callable[[Timing], Answer],
        totals: Totals,
    ) -> None:
        self.request = request
        self.cancelled = False
        self.cached_prompt_tokens: int | None = None
        self._answer = answer
        self.events: SimpleQueue[TextDelta | End] = SimpleQueue()
        self._totals = totals
        self._ended = False
        self._lock = Lock()
        self._submitted = time.monotonic()
        self._started: float | None = None
        self._prefilled: float | None = None

    @property
    def ended(self) -> bool:
        """Whether its last event has been written."""
        return self._ended

    @property
    def late(self) -> bool:
        """Whether its deadline has passed."""
        deadline = self.request.deadline
        return deadline is not None and time.monotonic() >= deadline

    @property
    def age_s(self) -> float:
        """Seconds since it was submitted."""
        return time.monotonic() - self._submitted

    def note_start(self) -> None:
        """Notes that it no longer waits."""
        self._started = time.monotonic()
        self._totals.count_started(self._started - self._submitted)

    def note_prefill(self) -> None:
        """Notes that the prompt has been read."""
        self._prefilled = time.monotonic()
        self._totals.count_first(self.request.vision_s + self._prefilled - self._submitted)

    def put(self, delta: TextDelta) -> None:
        """Adds some text, unless the request has ended."""
        with self._lock:
            if not self._ended:
                self.events.put(delta)

    def end(self, end: End | None = None) -> None:
        """Writes the last event; `None` is the answer so far. Only the first call counts."""
        with self._lock:
            if self._ended:
                return
            timing = self._measure()
            # Before `_ended` is set: if this fails, the failure can still be its end.
            last = self._so_far(timing) if end is None else end
            self._ended = True
            answer = last if isinstance(last, Answer) else None
            self._totals.count_ended(_find_outcome(last), timing, answer)
            self.events.put(last)

    def end_if_given_up(self) -> bool:
        """Ends the request if it is cancelled or late; returns whether it has ended."""
        if self.late:
            self.end(late_error())
        elif self.cancelled:
            self.end()
        return self._ended

    def abandon(self) -> None:
        """Cancels the request. Takes no lock, because garbage collection calls it."""
        self.cancelled = True

    def _so_far(self, timing: Timing) -> Answer:
        return replace(self._answer(timing), cached_prompt_tokens=self.cached_prompt_tokens)

    def _measure(self) -> Timing:
        now = time.monotonic()
        started = self._started or now
        prefilled = self._prefilled or now
        return Timing(
            vision_s=self.request.vision_s,
            queue_s=started - self._submitted,
            prefill_s=prefilled - started,
            decode_s=now - prefilled,
        )


class Ticket(Pending):
    """A request that is decoded in this process.

    Attributes:
        prompt: the tokenised prompt.
        decoding: generates its answer.
    """

    def __init__(
        self,
        request: GenerationRequest,
        prompt: PromptIds,
        decoding: Decoding,
        totals: Totals,
    ) -> None:
        super().__init__(request, decoding.answer, totals)
        self.cached_prompt_tokens: int = 0
        self.prompt = prompt
        self.decoding = decoding


class QueuedGeneration:
    """The caller's end of a request: a `Generation`.

    Args:
        ticket: the engine's end.
        cancel: asks the engine to stop it.
    """

    def __init__(self, ticket: Pending, cancel: Callable[[], None]) -> None:
        self._ticket = ticket
        self._cancel = cancel
        self._end: End | None = None
        # The engine holds only the ticket, so this notices that the caller has dropped the request.
        weakref.finalize(self, ticket.abandon).atexit = False

    def __iter__(self) -> Iterator[Event]:
        """Waits for the events in order. Iterating again after the end yields the end again.

        Raises:
            DeadlineError: the request's deadline passed before the end.
            EngineError: the engine failed or was closed.
        """
        while self._end is None:
            event = self._next()
            if isinstance(event, TextDelta):
                yield event
            else:
                self._end = event
        if isinstance(self._end, Answer):
            yield self._end
        else:
            raise self._end

    def cancel(self) -> None:
        """Stops the request within one step. Its last event is an `Answer` with `cancelled`."""
        self._cancel()

    def result(self) -> Answer:
        """Waits for the end and returns the answer. Raises what iterating raises."""
        for event in self:
            if isinstance(event, Answer):
                return event
        raise AssertionError("a generation ended without an answer")

    def _next(self) -> TextDelta | End:
        deadline = self._ticket.request.deadline
        if deadline is None:
            return self._ticket.events.get()
        try:
            return self._ticket.events.get(timeout=max(0.0, deadline - time.monotonic()))
        except Empty:
            # The engine may be busy with another request and report the deadline too late.
            self._ticket.abandon()
            return late_error()


def _find_outcome(end: End) -> Outcome:
    if isinstance(end, Answer):
        return end.finish_reason
    if isinstance(end, UsageError):  # such as a json_schema that no token can follow
        return "invalid"
    return "late" if isinstance(end, DeadlineError) else "failed"


def late_error() -> DeadlineError:
    """The error of a request whose deadline has passed."""
    return DeadlineError("the answer was not finished by its deadline. Allow it more time.")
