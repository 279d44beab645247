"""Runs one graph on ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from engines.onnxruntime.providers import CPU, Placement
from engines.onnxruntime.session import open_session
from engines.types import Feed
from export.contract import Contract
from export.errors import EngineError
from export.onnxruntime_values import run


class OnnxRuntimeRunner:
    """A `Runner` over one ONNX graph. Thread-safe while it is open.

    Args:
        path: of the `.onnx` file; its weights lie beside it.
        contract: the graph's inputs and outputs.
        threads: for one operator; `None` takes one per core this process may use.
        placement: the execution provider, its device and its options.
    """

    def __init__(
        self,
        path: Path,
        contract: Contract,
        *,
        threads: int | None = None,
        placement: Placement = CPU,
    ) -> None:
        self._path = path
        self._contract = contract
        self._threads = threads
        self._placement = placement
        self._session: Any = None

    @property
    def contract(self) -> Contract:
        """The graph's inputs and outputs."""
        return self._contract

    def __enter__(self) -> Self:
        # Runs are far apart here, so idle threads sleep rather than take cores from others.
        self._session = open_session(
            self._path,
            self._contract,
            threads=self._threads,
            placement=self._placement,
            spin=False,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._session = None

    def infer(self, feed: Feed) -> dict[str, Any]:
        """Every output by name, as numpy arrays of the contract's dtypes.

        Raises:
            ContractError: the feed does not fit the contract.
            EngineError: the runner is not open, or ONNX Runtime failed.
        """
        session = self._session
        if session is None:
            raise EngineError(f"the runner of {self._path} is not open: use it in a `with` block")
        self._contract.check_feed(feed)
        names = [spec.name for spec in self._contract.outputs]
        try:
            return run(session, names, feed)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            shapes = {name: list(array.shape) for name, array in feed.items()}
            message = f"ONNX Runtime failed in {self._path} on {shapes} ({error})"
            raise EngineError(message) from error
