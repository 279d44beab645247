"""Runs vision encoder or Q-Former on OpenVINO."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

from iblip.engines.openvino.graph import OpenVinoGraph
from iblip.engines.types import Feed
from iblip.export.artifact.contract import Contract
from iblip.export.errors import EngineError

IN_BFLOAT16 = ("bf16", "int8")
"""Precision words of which OpenVINO multiplies floats in bfloat16 where the processor can: for
`int8` those are attention and whatever matmul was left in float (decision 0053)."""


class OpenVinoRunner:
    """A `Runner` over one ONNX graph. Thread-safe while it is open: runs wait for each other.

    Args:
        path: of the `.onnx` file; its weights lie beside it.
        contract: the graph's inputs and outputs.
        precision: of the component, a key of `export.precision.DTYPES`.
        threads: for one operator; `None` takes what suits the graph and the machine.
    """

    def __init__(
        self, path: Path, contract: Contract, precision: str, *, threads: int | None = None
    ) -> None:
        self._path, self._contract = path, contract
        self._precision, self._threads = precision, threads
        self._graph: OpenVinoGraph | None = None
        self._lock = Lock()

    @property
    def contract(self) -> Contract:
        """The graph's inputs and outputs."""
        return self._contract

    def __enter__(self) -> Self:
        self._graph = OpenVinoGraph(
            self._path,
            self._contract,
            threads=self._threads,
            bfloat16=self._precision in IN_BFLOAT16,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._graph = None

    def infer(self, feed: Feed, keep: Collection[str] = ()) -> dict[str, Any]:
        """Every output by name, as numpy arrays of the contract's dtypes.

        Raises:
            ContractError: the feed does not fit the contract.
            EngineError: the runner is not open, or OpenVINO failed.
        """
        graph = self._graph
        if graph is None:
            raise EngineError(f"the runner of {self._path} is not open: use it in a `with` block")
        self._contract.check_feed(feed)
        with self._lock:
            return graph(feed)
