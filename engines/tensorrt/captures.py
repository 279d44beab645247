"""Runs captured as CUDA graphs, by shape: a launch in the place of hundreds.

A graph holds the state of the execution context that it was captured from, so that each has a
context of its own, which nothing else touches (NVIDIA's TensorRT documentation, "CUDA Graphs").
Knows nothing of CUDA or TensorRT.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from iblip.engines.tensorrt.profile import Shape

Key = tuple[int, tuple[Shape, ...]]
"""A profile's index, and the shapes of the inputs in the contract's order."""

Context = TypeVar("Context")

REMEMBERED = 8
"""For each graph that may be kept, how many shapes are remembered that were asked for once."""


@dataclass(frozen=True, kw_only=True)
class Captured(Generic[Context]):
    """One captured run.

    Attributes:
        graph: as `Device.capture` returns it.
        context: that it was captured from, kept alive.
        outputs: shapes of the outputs, by name.
    """

    graph: int
    context: Context
    outputs: Mapping[str, Shape]


class Captures(Generic[Context]):
    """The captured runs of one plan: those that were asked for last.

    Args:
        limit: how many are kept; 0 captures none.
        forget: frees a graph.
    """

    def __init__(self, limit: int, forget: Callable[[int], None]) -> None:
        self._limit, self._forget = limit, forget
        self._kept: OrderedDict[Key, Captured[Context]] = OrderedDict()
        self._seen: OrderedDict[Key, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key) -> Captured[Context] | None:
        """The captured run of these shapes, if there is one."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key]

    def earned(self, key: Key) -> bool:
        """Whether shapes that have just run are to be captured: those that came before, too."""
        if not self._limit:
            return False
        before = key in self._seen
        self._seen[key] = None
        self._seen.move_to_end(key)
        while len(self._seen) > self._limit * REMEMBERED:
            self._seen.popitem(last=False)
        return before

    def add(self, key: Key, captured: Captured[Context]) -> None:
        """Keeps a captured run; where there are too many, the one goes that waited longest."""
        self._kept[key] = captured
        while len(self._kept) > self._limit:
            _, oldest = self._kept.popitem(last=False)
            self._forget(oldest.graph)

    def stop(self) -> None:
        """Captures no more, and frees those that there are."""
        self._limit = 0
        while self._kept:
            _, captured = self._kept.popitem()
            self._forget(captured.graph)
