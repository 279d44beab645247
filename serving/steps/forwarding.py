"""Answers of another model, one response each: what the one-answer model does with its requests.

Knows neither Triton nor that model: it is given what asks it and what cancels there.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from iblip.export.errors import QueueFullError
from iblip.serving.steps.turns import Turns

logger = logging.getLogger(__name__)

POLL_S = 0.1
"""Seconds between two checks whether callers are still there."""

Call = Any
"""What the other model is asked."""

Response = Any
"""What a caller is sent."""


class Sender(Protocol):
    """Takes the one response to a request, and must not be asked anything after that."""

    def send(self, response: Response) -> None:
        """Sends the response."""

    def is_cancelled(self) -> bool:
        """Whether the caller has gone."""
        ...


@dataclass(eq=False)
class _Waiting:
    """A request whose answer is awaited.

    Attributes:
        sender: takes the response.
        caller_key: by which its caller cancels it; empty if it has none.
        own_key: by which it is cancelled at the other model, known to nobody else.
        given_up: whether nobody waits for it any more.
    """

    sender: Sender
    caller_key: str
    own_key: str = field(default_factory=lambda: secrets.token_hex(16))
    given_up: bool = False


class Forwarding:
    """Asks another model, each request in a thread, and sends every request exactly one response.

    Args:
        ask: makes a call and waits for the response to it.
        cancel: cancels at the other model what has that key; may be told so more than once.
        failure: the response for an error.
        most: requests under way at once; one more is refused.
        poll_s: seconds between two checks whether callers are still there.
    """

    def __init__(
        self,
        ask: Callable[[Call], Response],
        cancel: Callable[[str], object],
        failure: Callable[[Exception], Response],
        *,
        most: int,
        poll_s: float = POLL_S,
    ) -> None:
        self._ask, self._cancel, self._failure = ask, cancel, failure
        self._most, self._poll_s = most, poll_s
        self._waiting: dict[_Waiting, None] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch-callers", daemon=True)
        self._watcher.start()

    def forward(
        self, sender: Sender, make_call: Callable[[str], Call], caller_key: str = ""
    ) -> None:
        """Asks, and returns; the response follows.

        Args:
            sender: takes the response.
            make_call: makes the call, given the key by which the other model is to cancel it.
            caller_key: by which its caller cancels it.
        """
        one = _Waiting(sender, caller_key)
        try:
            call = make_call(one.own_key)
            with self._lock:
                if len(self._waiting) >= self._most:
                    raise QueueFullError(
                        f"{self._most} requests are under way, as many as this model takes. "
                        "Try again later."
                    )
                self._waiting[one] = None
            threading.Thread(target=self._follow, args=(one, call), daemon=True).start()
        except Exception as error:  # it belongs to this request, not to the model's process
            self._end(one, self._failure(error))

    def cancel(self, caller_key: str) -> int:
        """Gives up the requests with that key; how many there are. An empty key is of none."""
        with self._lock:
            found = [one for one in self._waiting if caller_key and one.caller_key == caller_key]
            for one in found:
                one.given_up = True
        self._cancel_all(found)
        return len(found)

    def close(self) -> None:
        """Looks after callers no more. Triton ends a model when it has no request any more."""
        self._closed.set()
        self._watcher.join()

    def _follow(self, one: _Waiting, call: Call) -> None:
        try:
            response = self._ask(call)
        except Exception as error:  # as in `forward`
            response = self._failure(error)
        self._end(one, response)

    def _end(self, one: _Waiting, response: Response) -> None:
        with self._lock:
            self._waiting.pop(one, None)
        one.sender.send(response)

    def _watch(self) -> None:
        turns = Turns[_Waiting](self._poll_s)
        while not self._closed.wait(self._poll_s):
            with self._lock:
                asked = [one for one in turns.take(self._waiting) if not one.given_up]
                for one in asked:
                    one.given_up = one.sender.is_cancelled()
                turns.found_gone(sum(one.given_up for one in asked))
                given_up = [one for one in self._waiting if one.given_up]
            self._cancel_all(given_up)  # until it ends: the other model may not have it yet

    def _cancel_all(self, given_up: list[_Waiting]) -> None:
        for one in given_up:
            try:
                self._cancel(one.own_key)
            except Exception:  # those who wait are still to be looked after
                logger.exception("a request could not be cancelled")
