"""Answers many requests at once: passes an engine's events on to replies, each on its own thread.

Knows neither Triton nor any engine: a `Reply` takes an answer, and says whether its caller is still
there.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from iblip.engines.language_model.types import (
    Answer,
    Event,
    Generation,
    GenerationRequest,
    LanguageModelEngine,
)
from iblip.serving.steps.ending import end_if_fatal

logger = logging.getLogger(__name__)

POLL_S = 0.02
"""Seconds between two checks whether callers are still there."""

REMEMBERED = 256
"""Number of cancelled ids kept, for a cancellation that arrives before its request."""


class Reply(Protocol):
    """Takes an answer. `finish` or `fail` is called once, at the end."""

    def delta(self, text: str) -> None:
        """Sends more of the text."""

    def finish(self, answer: Answer) -> None:
        """Ends an answer whose text has been sent."""

    def fail(self, error: Exception) -> None:
        """Ends a request that has no answer, or no complete one."""

    def is_cancelled(self) -> bool:
        """Whether the caller has gone."""
        ...


class Answering:
    """Takes requests, and follows each to its end.

    A waiting request costs a sleeping thread; the engine limits how many may wait. One more thread
    checks whether the callers are still there, so that an answer nobody waits for frees its slot
    within a step, even before its first token.

    Args:
        engine: answers the requests; closed by `close`.
        poll_s: seconds between two checks whether callers are still there.
        failed: takes each error after its caller has it; by default it ends the process where the
            GPU can no longer be used.
    """

    def __init__(
        self,
        engine: LanguageModelEngine,
        *,
        poll_s: float = POLL_S,
        failed: Callable[[Exception], object] = end_if_fatal,
    ) -> None:
        self._engine = engine
        self._failed = failed
        self._poll_s = poll_s
        self._running: dict[Generation, _Caller] = {}
        self._cancelled_ids: deque[str] = deque(maxlen=REMEMBERED)
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch-callers", daemon=True)
        self._watcher.start()

    def answer(self, request: GenerationRequest, reply: Reply, request_id: str = "") -> None:
        """Queues the request and returns; a request that the engine refuses fails at once.

        Args:
            request: to submit to the engine.
            reply: takes the answer.
            request_id: identifies the request for `cancel`; empty if it has no id.
        """
        caller = _Caller(reply, request_id)
        try:
            generation = self._engine.submit(request)
        except Exception as error:  # any error belongs to this caller; the process serves on
            self._fail(caller, error)
            return
        thread = threading.Thread(
            target=self._follow, args=(generation, caller), name="answer", daemon=True
        )
        with self._lock:
            self._running[generation] = caller
            self._threads.add(thread)
            is_cancelled = request_id in self._cancelled_ids
        thread.start()
        if is_cancelled:
            generation.cancel()

    def cancel(self, request_id: str) -> int:
        """Cancels the requests with that id, even one that is still to come.

        An empty id cancels nothing, because many requests have none.

        Returns:
            how many requests with that id were running.
        """
        if not request_id:
            return 0
        with self._lock:
            self._cancelled_ids.append(request_id)
            matches = [g for g, caller in self._running.items() if caller.request_id == request_id]
        for generation in matches:
            generation.cancel()
        return len(matches)

    def close(self) -> None:
        """Ends every request with an error, waits for the replies, and closes the engine."""
        self._closed.set()
        self._watcher.join()
        self._engine.close()
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join()

    def _follow(self, generation: Generation, caller: _Caller) -> None:
        try:
            for event in generation:
                caller.pass_on(event)
        except Exception as error:  # as in `answer`
            generation.cancel()
            self._fail(caller, error)
        finally:
            with self._lock:
                self._running.pop(generation, None)
                self._threads.discard(threading.current_thread())

    def _fail(self, caller: _Caller, error: Exception) -> None:
        caller.fail(error)
        self._failed(error)

    def _watch(self) -> None:
        while not self._closed.wait(self._poll_s):
            with self._lock:
                running = list(self._running.items())
            for generation, caller in running:
                if caller.has_gone():
                    generation.cancel()


class _Caller:
    """A reply that ends once, and is not used after its end.

    Triton frees a request with its last response; asking afterwards, from another thread, whether
    it is cancelled crashes the server with a segmentation fault.
    """

    def __init__(self, reply: Reply, request_id: str) -> None:
        self.request_id = request_id
        self._reply = reply
        self._ended = False
        self._lock = threading.Lock()

    def pass_on(self, event: Event) -> None:
        """Passes an event to the reply."""
        if isinstance(event, Answer):
            with self._lock:
                self._ended = True
                self._reply.finish(event)
        else:
            self._reply.delta(event.text)

    def fail(self, error: Exception) -> None:
        """Passes an error to the reply, unless it has ended before."""
        with self._lock:
            if self._ended:
                logger.error("an answer could not be sent: %s", error)
                return
            self._ended = True
            try:
                self._reply.fail(error)
            except Exception:  # the caller has gone
                logger.exception("an error could not be sent: %s", error)

    def has_gone(self) -> bool:
        """Whether the reply is open but its caller no longer waits."""
        with self._lock:
            return not self._ended and self._reply.is_cancelled()
