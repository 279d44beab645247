"""Answers many requests at once: from an engine's events to replies, each on its own thread.

Knows neither Triton nor any engine: a `Reply` is where an answer goes, and says whether its caller
is still there.
"""

from __future__ import annotations

import logging
import threading
from typing import Protocol

from engines.language_model.types import (
    Answer,
    Generation,
    GenerationRequest,
    LanguageModelEngine,
)

logger = logging.getLogger(__name__)

POLL_S = 0.02
"""How often callers are asked whether they are still there, in seconds."""


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
        self._running: dict[Generation, Reply] = {}
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch-callers", daemon=True)
        self._watcher.start()

    def answer(self, request: GenerationRequest, reply: Reply) -> None:
        """Queues the request and returns; a request that the engine refuses fails at once."""
        try:
            generation = self._engine.submit(request)
        except Exception as error:  # the caller's, whatever it is: this process serves on
            _fail(reply, error)
            return
        thread = threading.Thread(
            target=self._follow, args=(generation, reply), name="answer", daemon=True
        )
        with self._lock:
            self._running[generation] = reply
            self._threads.add(thread)
        thread.start()

    def close(self) -> None:
        """Ends every request with an error, waits for the replies, and closes the engine."""
        self._closed.set()
        self._watcher.join()
        self._engine.close()
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join()

    def _follow(self, generation: Generation, reply: Reply) -> None:
        try:
            for event in generation:
                if isinstance(event, Answer):
                    reply.finish(event)
                else:
                    reply.delta(event.text)
        except Exception as error:  # as in `answer`
            generation.cancel()
            _fail(reply, error)
        finally:
            with self._lock:
                self._running.pop(generation, None)
                self._threads.discard(threading.current_thread())

    def _watch(self) -> None:
        while not self._closed.wait(self._poll_s):
            with self._lock:
                running = list(self._running.items())
            for generation, reply in running:
                if reply.is_cancelled():
                    generation.cancel()


def _fail(reply: Reply, error: Exception) -> None:
    try:
        reply.fail(error)
    except Exception:  # the caller has gone, and took with it whom to tell
        logger.exception("an error could not be sent: %s", error)
