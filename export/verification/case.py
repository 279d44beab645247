"""`Case`: one input of one graph, and the outputs expected of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]
"""Tensors by name."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One input of one graph.

    Attributes:
        graph: `component/graph`.
        name: of the case, unique within the graph.
        feed: the inputs; float tensors are float32, whatever the graph's precision.
        expected: the reference's outputs, float32.
        real: by output, a mask that broadcasts to its shape, true at positions that are no padding.
    """

    graph: str
    name: str
    feed: Arrays
    expected: Arrays
    real: Arrays
