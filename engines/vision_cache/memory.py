"""The last used values, in memory, up to a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

import numpy as np


class Sized(Protocol):
    """An array, wherever it lies."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis, in elements."""
        ...

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """numpy's dtype of its elements."""
        ...


Value = TypeVar("Value", bound=Sized)


class RecentArrays(Generic[Value]):
    """Arrays by key; those used least recently make place for others. Thread-safe.

    Args:
        most_bytes: of all arrays together; a larger one is not held at all, and 0 holds none.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most, self._held = most_bytes, 0
        self._arrays: OrderedDict[object, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: object) -> Value | None:
        """The array, or `None` where it is not held."""
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
            return self._arrays.get(key)

    def put(self, key: object, array: Value) -> None:
        """Holds an array, if it fits."""
        if _bytes(array) > self._most:
            return
        with self._lock:
            if key not in self._arrays:
                self._arrays[key] = array
                self._held += _bytes(array)
            while self._held > self._most:
                _, oldest = self._arrays.popitem(last=False)
                self._held -= _bytes(oldest)

    def clear(self) -> None:
        """Frees all of them."""
        with self._lock:
            self._arrays.clear()
            self._held = 0


def _bytes(array: Sized) -> int:
    """An array that stays on a GPU has no `nbytes`."""
    return int(np.prod(array.shape)) * array.dtype.itemsize
