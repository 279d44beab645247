"""The types that engines are made of and speak in. Knows numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self

import numpy.typing as npt

from export.contract import Contract

Feed = Mapping[str, npt.NDArray[Any]]
"""Tensors by name."""


class Runner(Protocol):
    """Runs one graph. A context manager: entering loads the engine, leaving frees it.

    `infer` checks the feed against `contract` first and raises `ContractError`; a failure inside
    the engine raises `EngineError`.
    """

    @property
    def contract(self) -> Contract:
        """The graph's inputs and outputs."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def infer(self, feed: Feed) -> dict[str, npt.NDArray[Any]]:
        """Every output by name, for these inputs."""
        ...
