"""The queue of an engine: which request is next, and which have been given up."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from iblip.engines.language_model.generation import Pending

BULK_PATIENCE_S = 30.0
"""Seconds after which a waiting bulk request counts as interactive."""

T = TypeVar("T", bound=Pending)


class WaitingRequests(Generic[T]):
    """Requests in order of arrival, of which the interactive ones are next. Not thread-safe.

    Args:
        patience_s: seconds after which a bulk request counts as interactive.
    """

    def __init__(self, patience_s: float = BULK_PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._requests: deque[T] = deque()

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[T]:
        return iter(self._requests)

    def add(self, request: T) -> None:
        """Adds the last to arrive."""
        self._requests.append(request)

    def remove(self, request: T) -> bool:
        """Takes a request out; `False` if it is not here."""
        if request not in self._requests:
            return False
        self._requests.remove(request)
        return True

    def take_all(self) -> list[T]:
        """Takes out every request."""
        requests = list(self._requests)
        self._requests.clear()
        return requests

    def drop_given_up(self) -> None:
        """Ends the requests that are cancelled or late, and takes them out."""
        self._requests = deque(r for r in self._requests if not r.end_if_given_up())

    @property
    def next(self) -> T | None:
        """The first interactive request, or the first of all where there is none."""
        urgent = (request for request in self._requests if self._is_urgent(request))
        return next(urgent, self._requests[0] if self._requests else None)

    def _is_urgent(self, request: T) -> bool:
        return request.request.priority == "interactive" or request.age_s >= self._patience_s
