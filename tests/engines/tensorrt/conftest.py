"""A library whose plans are ONNX graphs, run on `host_device`, where no TensorRT is.

It changes its scratch memory in every run, wants contexts to stay as they were captured, and
answers with ONNX Runtime's numbers. It cannot show what TensorRT does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from iblip.engines.cuda.device import Array
from iblip.engines.onnxruntime.session import open_session
from iblip.engines.tensorrt.libraries import DTYPES, Library
from iblip.export.artifact.contract import Contract
from iblip.export.artifact.manifest import EngineRecord
from iblip.export.graph.onnxruntime_values import run

ALIGNMENT, JUNK = 256, 0xA5


@dataclass
class HostEngine:
    """An `ICudaEngine` whose plan is an ONNX graph."""

    device: Any
    contract: Contract
    session: Any
    profiles: list[dict[str, list[int]]]
    device_memory_size_v2: int = 512
    contexts: list[HostContext] = field(default_factory=list)
    library: Any = None
    caches: list[HostCache] = field(default_factory=list)

    @property
    def specs(self) -> dict[str, Any]:
        return {spec.name: spec for spec in (*self.contract.inputs, *self.contract.outputs)}

    @property
    def num_io_tensors(self) -> int:
        return len(self.specs)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self.specs)[index]

    def get_tensor_mode(self, name: str) -> Any:
        inputs = [spec.name for spec in self.contract.inputs]
        modes = self.library.TensorIOMode
        return modes.INPUT if name in inputs else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self.library.DataType.__members__[DTYPES[self.specs[name].dtype]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(axis if isinstance(axis, int) else -1 for axis in self.specs[name].axes)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        spans = [
            [axis] * 3 if isinstance(axis, int) else self.profiles[index][axis]
            for axis in self.specs[name].axes
        ]
        return [tuple(span[place] for span in spans) for place in range(3)]

    def create_runtime_config(self) -> HostConfig:
        return HostConfig(self)

    def create_execution_context(self, strategy: Any) -> HostContext:
        if isinstance(strategy, HostConfig):
            if strategy.cache is not None:  # this library compiles one kernel a profile
                strategy.cache.kernels[len(strategy.cache.kernels)] = len(self.contexts)
            strategy = strategy.strategy
        assert strategy == self.library.ExecutionContextAllocationStrategy.USER_MANAGED
        self.contexts.append(HostContext(self))
        return self.contexts[-1]


@dataclass
class HostCache:
    """An `IRuntimeCache`, whose kernels are numbers."""

    kernels: dict[int, int] = field(default_factory=dict)

    def serialize(self) -> bytes:
        return json.dumps(list(self.kernels.items())).encode()

    def deserialize(self, blob: bytes) -> bool:
        try:
            self.kernels.update(json.loads(blob))
        except ValueError:
            return False
        return True


@dataclass
class HostConfig:
    """An `IRuntimeConfig` of a `HostEngine`."""

    engine: HostEngine
    cache: HostCache | None = None
    strategy: Any = None
    cuda_graph_strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> HostCache:
        self.engine.caches.append(HostCache())
        return self.engine.caches[-1]

    def set_runtime_cache(self, cache: HostCache) -> bool:
        self.cache = cache
        return True


@dataclass
class HostContext:
    """An `IExecutionContext` of a `HostEngine`."""

    engine: HostEngine
    profile: int | None = None
    addresses: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    scratch: tuple[int, int] | None = None

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream in self.engine.device.streams
        self.profile = index
        return index < len(self.engine.profiles)

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.engine.device_memory_size_v2
        self.scratch = address, size

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.specs and address % ALIGNMENT == 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None
        least, _, most = self.engine.get_tensor_profile_shape(name, self.profile)
        self.shapes[name] = shape
        return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes = {
            axis: size
            for spec in self.engine.contract.inputs
            for axis, size in zip(spec.axes, self.shapes[spec.name], strict=True)
        }
        axes = self.engine.specs[name].axes
        return tuple(axis if isinstance(axis, int) else sizes.get(axis, -1) for axis in axes)

    def execute_async_v3(self, stream: int) -> bool:
        assert self.scratch is not None, "the context has no memory to work in"
        if self.engine.device.fails == "execute":
            return False
        shapes = dict(self.shapes)

        def work() -> None:
            assert self.shapes == shapes, "the context was changed after its work was queued"
            self.engine.device.bytes_at(*self.scratch)[:] = JUNK
            feed = {spec.name: self._array(spec) for spec in self.engine.contract.inputs}
            outputs = [spec.name for spec in self.engine.contract.outputs]
            for name, array in run(self.engine.session, outputs, feed).items():
                self._array(self.engine.specs[name])[...] = array

        self.engine.device.put(stream, work)
        return True

    def _array(self, spec: Any) -> Array:
        shape = self.get_tensor_shape(spec.name)
        size = int(np.prod(shape)) * spec.numpy_dtype.itemsize
        memory = self.engine.device.bytes_at(self.addresses[spec.name], size)
        return memory.view(spec.numpy_dtype).reshape(shape)


@dataclass
class Bench:
    """A plan that is an ONNX graph, and what runs it.

    Attributes:
        device: of its runners.
        library: that loads it.
        path: of the plan.
        record: of the engine.
        contract: of the graph.
        engines: that were loaded.
    """

    device: Any
    library: Library
    path: Path
    record: EngineRecord
    contract: Contract
    engines: list[HostEngine]


@pytest.fixture
def bench(tmp_path: Path, host_device: Any) -> Callable[..., Bench]:
    """`bench(graph, contract, {"batch": [1, 2, 4]}, …)`: one profile or several."""
    trt = pytest.importorskip("tensorrt_rtx_bindings.tensorrt_rtx")

    def make(
        graph: Path, contract: Contract, *profiles: Mapping[str, list[int]], **details: Any
    ) -> Bench:
        device = host_device
        engines: list[HostEngine] = []

        class Runtime:
            engine_host_code_allowed = False

            def __init__(self, log: Any) -> None:
                self.log = log

            def deserialize_cuda_engine(self, plan: bytes) -> HostEngine | None:
                try:
                    found = json.loads(plan)
                except ValueError:
                    self.log.log(trt.ILogger.ERROR, "the plan has no header")
                    return None
                session = open_session(Path(found["graph"]), contract, threads=1)
                engine = HostEngine(device, contract, session, found["profiles"], library=trt)
                engines.append(engine)
                return engine

        path = tmp_path / "model.plan"
        path.write_text(json.dumps({"graph": str(graph), "profiles": profiles}))
        module = SimpleNamespace(**{**vars(trt), "Runtime": Runtime})
        record = EngineRecord(
            kind="tensorrt", files={"model": path.name}, details={"version": "11.4.0", **details}
        )
        library = Library(kind="tensorrt", module=module, version="11.4.0")
        return Bench(device, library, path, record, contract, engines)

    return make
