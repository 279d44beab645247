"""Answers many requests at once: from an engine's events to replies, each on its own thread.

Knows neither Triton nor any engine: a `Reply` is where an answer goes, and says whether its caller
is still there.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import Protocol

from iblip.engines.language_model.types import (
    Answer,
    Event,
    Generation,
    GenerationRequest,
    LanguageModelEngine,
)

logger = logging.getLogger(__name__)

POLL_S = 0.02
"""How often callers are asked whether they are still there, in seconds."""

REMEMBERED = 256
"""How many cancelled ids are kept, for a request that its own cancellation overtakes."""


class Reply(Protocol):
    """Where an answer goes. `finish` or `fail` is called once, last."""

    def delta(self, text: str) -> None:
        """Some more text."""

    def finish(self, answer: Answer) -> None:
        """The end of an answer whose text has been sent."""

    def fail(self, error: Exception) -> None:
        """The end of a request that has no answer, or no whole one."""

    def is_cancelled(self) -> bool:
        """Whether the caller has gone."""
        ...


class Answering:
    """Takes requests, and sees each to its end.

    A waiting request costs a thread that sleeps; how many may wait is the engine's own limit. One
    more thread asks the callers whether they are still there, so that an answer nobody waits for
    frees its place within a step, also before its first token.
    """

    def __init__(self, engine: LanguageModelEngine, *, poll_s: float = POLL_S) -> None:
        self._engine = engine
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
            request: what is asked.
            reply: where the answer goes.
            request_id: what `cancel` is given; empty where the request has none.
        """
        caller = _Caller(reply, request_id)
        try:
            generation = self._engine.submit(request)
        except Exception as error:  # the caller's, whatever it is: this process serves on
            caller.fail(error)
            return
        thread = threading.Thread(
            target=self._follow, args=(generation, caller), name="answer", daemon=True
        )
        with self._lock:
            self._running[generation] = caller
            self._threads.add(thread)
            overtaken = request_id in self._cancelled_ids
        thread.start()
        if overtaken:
            generation.cancel()

    def cancel(self, request_id: str) -> int:
        """Cancels the requests of that id, and one that is still to come; how many are running.

        An empty id is nobody's: many requests have none.
        """
        if not request_id:
            return 0
        with self._lock:
            self._cancelled_ids.append(request_id)
            found = [g for g, caller in self._running.items() if caller.request_id == request_id]
        for generation in found:
            generation.cancel()
        return len(found)

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
                caller.tell(event)
        except Exception as error:  # as in `answer`
            generation.cancel()
            caller.fail(error)
        finally:
            with self._lock:
                self._running.pop(generation, None)
                self._threads.discard(threading.current_thread())

    def _watch(self) -> None:
        while not self._closed.wait(self._poll_s):
            with self._lock:
                running = list(self._running.items())
            for generation, caller in running:
                if caller.has_gone():
                    generation.cancel()


class _Caller:
    """A reply that ends once, and is asked nothing after its end.

    Triton frees a request at its last response: to ask of it then whether it is cancelled, from
    another thread, ends the whole server with a segmentation fault.
    """

    def __init__(self, reply: Reply, request_id: str) -> None:
        self.request_id = request_id
        self._reply = reply
        self._ended = False
        self._lock = threading.Lock()

    def tell(self, event: Event) -> None:
        """Passes an event on."""
        if isinstance(event, Answer):
            with self._lock:
                self._ended = True
                self._reply.finish(event)
        else:
            self._reply.delta(event.text)

    def fail(self, error: Exception) -> None:
        """Passes an error on, where nothing has ended the reply before."""
        with self._lock:
            if self._ended:
                logger.error("an answer could not be sent: %s", error)
                return
            self._ended = True
            try:
                self._reply.fail(error)
            except Exception:  # the caller has gone, and took with it whom to tell
                logger.exception("an error could not be sent: %s", error)

    def has_gone(self) -> bool:
        """Whether nobody waits for the end any more."""
        with self._lock:
            return not self._ended and self._reply.is_cancelled()
