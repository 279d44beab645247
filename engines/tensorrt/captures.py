"""Runs captured as CUDA graphs, by shape: one launch replaces hundreds.

A graph depends on the state of the execution context that it was captured from, so each has a
context of its own that nothing else uses (NVIDIA's TensorRT documentation, "CUDA Graphs"). This
module knows nothing of CUDA or TensorRT.
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
"""How many shapes that ran once are remembered, per graph that may be kept."""


@dataclass(frozen=True, kw_only=True)
class CapturedRun(Generic[Context]):
    """One captured run.

    Attributes:
        graph: as `Device.capture` returns it.
        context: the context that it was captured from, kept alive.
        outputs: shapes of the outputs, by name.
    """

    graph: int
    context: Context
    outputs: Mapping[str, Shape]


class Captures(Generic[Context]):
    """The captured runs of one plan, of the shapes that were used last.

    Args:
        limit: how many are kept; 0 captures none.
        forget: frees a graph.
    """

    def __init__(self, limit: int, forget: Callable[[int], None]) -> None:
        self._limit, self._forget = limit, forget
        self._kept: OrderedDict[Key, CapturedRun[Context]] = OrderedDict()
        self._seen: OrderedDict[Key, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key) -> CapturedRun[Context] | None:
        """The captured run of these shapes; `None` if there is none."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key]

    def should_capture(self, key: Key) -> bool:
        """Whether shapes that have just run are to be captured: only if they also ran before."""
        if not self._limit:
            return False
        before = key in self._seen
        self._seen[key] = None
        self._seen.move_to_end(key)
        while len(self._seen) > self._limit * REMEMBERED:
            self._seen.popitem(last=False)
        return before

    def add(self, key: Key, captured: CapturedRun[Context]) -> None:
        """Keeps a captured run; if there are too many, the least recently used is freed."""
        self._kept[key] = captured
        while len(self._kept) > self._limit:
            _, oldest = self._kept.popitem(last=False)
            self._forget(oldest.graph)

    def stop(self) -> None:
        """Stops capturing, and frees all captured runs."""
        self._limit = 0
        while self._kept:
            _, captured = self._kept.popitem()
            self._forget(captured.graph)
