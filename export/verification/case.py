"""`Case`: one input of one graph, and what is wanted of it."""

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
        name: tells the case from others of this graph.
        feed: the inputs; float tensors are float32, whatever the graph's precision.
        wanted: the reference's outputs.
        real: by output, a mask that broadcasts against it, true at positions that are not padding.
    """

    graph: str
    name: str
    feed: Arrays
    wanted: Arrays
    real: Arrays
