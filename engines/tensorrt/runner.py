"""Runs one plan on an NVIDIA GPU, in this process."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

from iblip.engines.compiled import in_use, opening
from iblip.engines.cuda.device import CudaDevice, Device
from iblip.engines.tensorrt.execution import Execution
from iblip.engines.tensorrt.kernels import KernelCache
from iblip.engines.tensorrt.libraries import Library, find_library
from iblip.engines.tensorrt.loading import check_record, load_plan
from iblip.engines.types import Feed
from iblip.export.artifact.contract import Contract
from iblip.export.artifact.manifest import EngineRecord
from iblip.export.errors import EngineError

GRAPHS = 8
"""How many shapes of a plan are kept as CUDA graphs, each with a context of its own."""


class TensorRTRunner:
    """A `Runner` over one plan of TensorRT or TensorRT-RTX. Thread-safe: one run at a time.

    Args:
        path: of the `.plan` file.
        contract: the graph's inputs and outputs.
        record: of the engine, from the manifest.
        device: the GPU's number, from 0.
        graphs: how many shapes are kept as CUDA graphs; 0 captures none.
        cache: a folder for the kernels that TensorRT-RTX compiles; `None` keeps none. While the
            runner is open, `iblip engines prune` leaves it.
        library: replaces the installed one of the record's kind.
        open_device: opens the GPU of a number.
    """

    def __init__(
        self,
        path: Path,
        contract: Contract,
        record: EngineRecord,
        *,
        device: int = 0,
        graphs: int = GRAPHS,
        cache: Path | None = None,
        library: Library | None = None,
        open_device: Callable[[int], Device] = CudaDevice,
    ) -> None:
        self._path, self._contract, self._record = path, contract, record
        self._number, self._graphs = device, graphs
        self._library, self._open_device = library, open_device
        self._cache = cache
        self._kernels: KernelCache | None = None
        self._held = ExitStack()
        self._lock = Lock()
        self._execution: Execution | None = None

    @property
    def contract(self) -> Contract:
        """The graph's inputs and outputs."""
        return self._contract

    def __enter__(self) -> Self:
        """Loads the plan, and allocates the memory of its largest shapes.

        Raises:
            EngineError: the library is not installed, is not of the plan's version, or cannot load
                it; there is no GPU, or too little memory; the plan does not fit the contract.
        """
        library = self._library or find_library(self._record.kind)
        check_record(self._path, self._record, library)
        self._device = self._open_device(self._number)
        plan = load_plan(self._path, self._record, self._contract, library)
        with ExitStack() as stack:
            if self._cache is not None:
                stack.enter_context(in_use(self._cache))
                self._kernels = KernelCache(self._cache)
            plan = replace(plan, kernels=self._kernels)
            with opening(self._cache):
                self._execution = Execution(plan, self._contract, self._device, graphs=self._graphs)
                self._save_kernels()
            self._held = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock, self._held, ExitStack() as stack:
            if self._execution is not None:
                self._device.use()
                stack.callback(self._execution.close)
                self._save_kernels()  # those of the shapes that came since
            self._execution = None

    def _save_kernels(self) -> None:
        if self._kernels is not None:
            self._kernels.save()

    def infer(self, feed: Feed, keep: Collection[str] = ()) -> dict[str, Any]:
        """Every output by name, as numpy arrays of the contract's dtypes; `keep` is ignored.

        Raises:
            ContractError: the feed does not fit the contract.
            InputError: the feed is larger or smaller than the plan was built for.
            EngineError: the runner is not open, or TensorRT or CUDA failed.
        """
        self._contract.check_feed(feed)
        with self._lock:
            if self._execution is None:
                message = f"the runner of {self._path} is not open: use it in a `with` block"
                raise EngineError(message)
            self._device.use()
            return self._execution.run(feed)
