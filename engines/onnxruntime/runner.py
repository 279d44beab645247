"""Runs one graph on ONNX Runtime."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from iblip.engines.compiled import in_use, opening
from iblip.engines.onnxruntime.captured import CapturedRuns, fill_up, run_options
from iblip.engines.onnxruntime.providers import CPU, Placement
from iblip.engines.onnxruntime.session import open_session
from iblip.engines.onnxruntime.values import KeptTensor, value_of
from iblip.engines.types import Feed
from iblip.export.artifact.contract import Contract
from iblip.export.errors import EngineError

logger = logging.getLogger(__name__)


class OnnxRuntimeRunner:
    """A `Runner` over one ONNX graph. Thread-safe while it is open.

    Args:
        path: of the `.onnx` file; its weights lie beside it.
        contract: the graph's inputs and outputs.
        threads: for one operator; `None` takes what suits the graph and the machine.
        placement: the execution provider, its device and its options. While the runner is open,
            `iblip engines prune` leaves its `cache`.
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
        self._captured: CapturedRuns | None = None
        self._held = contextlib.ExitStack()

    @property
    def contract(self) -> Contract:
        """The graph's inputs and outputs."""
        return self._contract

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(in_use(self._placement.cache))
            with opening(self._placement.cache):
                self._session = self._open()
            if self._placement.captures:
                device = self._placement.device
                self._captured = CapturedRuns(self._session, self._contract, device)
            self._held = stack.pop_all()
        return self

    def _open(self) -> Any:
        try:
            return self._open_on(self._placement)
        except EngineError as error:
            if not self._placement.captures:
                raise
            # ONNX Runtime refuses CUDA graphs where a node is left to the CPU.
            self._placement = replace(self._placement, captures=False)
            session = self._open_on(self._placement)
            logger.warning("%s runs without CUDA graphs: %s", self._path, error)
            return session

    def _open_on(self, placement: Placement) -> Any:
        # Runs are far apart here, so idle threads sleep instead of occupying cores.
        return open_session(
            self._path, self._contract, threads=self._threads, placement=placement, spin=False
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        captured, self._captured = self._captured, None
        if captured is not None:
            captured.close()
        self._session = None  # TensorRT-RTX writes what it compiled when its session goes
        self._held.close()

    def infer(self, feed: Feed, keep: Collection[str] = ()) -> dict[str, Any]:
        """Every output by name, as numpy arrays of the contract's dtypes.

        Those named in `keep` are `KeptTensor`s in the provider's memory.

        Raises:
            ContractError: the feed does not fit the contract.
            EngineError: the runner is not open, or ONNX Runtime failed.
        """
        session = self._session
        if session is None:
            raise EngineError(f"the runner of {self._path} is not open: use it in a `with` block")
        self._contract.check_feed(feed)
        try:
            captured = self._captured
            if captured is None:
                return self._run(session, feed, keep)
            stays = keep or any(isinstance(array, KeptTensor) for array in feed.values())
            outputs = None if stays else captured.run(feed)
            if outputs is None:
                return captured.call(
                    self._run, session, fill_up(self._contract, feed), keep, run_options()
                )
            return outputs
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            shapes = {name: list(array.shape) for name, array in feed.items()}
            message = f"ONNX Runtime failed in {self._path} on {shapes} ({error})"
            raise EngineError(message) from error

    def _run(
        self, session: Any, feed: Feed, keep: Collection[str], options: Any = None
    ) -> dict[str, Any]:
        binding = session.io_binding()
        values = {name: value_of(array) for name, array in feed.items()}  # kept alive to the end
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        memory, device = self._placement.memory, self._placement.device
        for spec in self._contract.outputs:
            place = (memory, device) if spec.name in keep else ("cpu", 0)
            binding.bind_output(spec.name, *place)
        session.run_with_iobinding(binding, options)
        binding.synchronize_outputs()
        pairs = zip(self._contract.outputs, binding.get_outputs(), strict=True)
        outputs = {spec.name: KeptTensor(value, spec.numpy_dtype) for spec, value in pairs}
        return {name: kept if name in keep else np.asarray(kept) for name, kept in outputs.items()}
