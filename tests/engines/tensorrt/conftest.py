"""A device whose memory is this process's, and a library whose plans are ONNX graphs.

They stand where no GPU is: they run nothing before it is waited for, look at memory when the work
is done and not when it is queued, know what they gave away, and answer with ONNX Runtime's numbers.
What they cannot show is what CUDA and TensorRT do.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines.cuda.device import Array
from engines.onnxruntime.session import open_session
from engines.tensorrt.builder import DTYPES
from engines.tensorrt.libraries import Library
from export.contract import Contract
from export.errors import EngineError
from export.manifest import EngineRecord
from export.onnxruntime_values import run

ALIGNMENT, JUNK = 256, 0xA5
Work = Callable[[], None]


@dataclass
class HostDevice:
    """A `Device`: see `engines.cuda.device`."""

    name: str = "the host"
    fails: str = ""  # the call that fails
    memory: dict[int, Array] = field(default_factory=dict)  # by address, of both kinds
    streams: dict[int, list[Work]] = field(default_factory=dict)
    graphs: dict[int, list[Work]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    capturing: list[Work] | None = None
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    def use(self) -> None:
        self._called("use")

    def allocate(self, size: int) -> int:
        self._called("allocate")
        assert size > 0
        block = np.full(size + ALIGNMENT, JUNK, np.uint8)
        start = -block.ctypes.data % ALIGNMENT
        address = block.ctypes.data + start
        self.memory[address] = block[start : start + size]
        return address

    def free(self, address: int) -> None:
        self._called("free")
        del self.memory[address]

    def pinned(self, size: int) -> Array:
        self._called("pinned")
        array = np.full(size, JUNK, np.uint8)
        self.memory[array.ctypes.data] = array
        return array

    def unpin(self, array: Array) -> None:
        self._called("unpin")
        del self.memory[array.ctypes.data]

    def open_stream(self) -> int:
        self._called("open_stream")
        stream = next(self.numbers)
        self.streams[stream] = []
        return stream

    def close_stream(self, stream: int) -> None:
        self._called("close_stream")
        assert not self.streams.pop(stream), "work is left on the stream"

    def upload(self, address: int, array: Array, stream: int) -> None:
        self._called("upload")
        self.bytes_at(array.ctypes.data, array.nbytes)  # pinned, and still ours
        self.put(stream, lambda: self._copy(address, array.ctypes.data, array.nbytes))

    def download(self, array: Array, address: int, stream: int) -> None:
        self._called("download")
        self.put(stream, lambda: self._copy(array.ctypes.data, address, array.nbytes))

    def copy_rows(
        self, target: int, source: int, *, pitch: int, width: int, rows: int, stream: int
    ) -> None:
        self._called("copy_rows")

        def work() -> None:
            for row in range(rows):
                self._copy(target + row * pitch, source + row * pitch, width)

        self.put(stream, work)

    def synchronize(self, stream: int) -> None:
        self._called("synchronize")
        assert self.capturing is None, "nothing can be waited for while work is captured"
        while self.streams[stream]:
            self.streams[stream].pop(0)()

    def capture(self, stream: int, work: Work) -> int:
        self._called("capture")
        self.capturing = []
        try:
            work()
            graph = next(self.numbers)
            self.graphs[graph] = self.capturing
        finally:
            self.capturing = None
        return graph

    def launch(self, graph: int, stream: int) -> None:
        self._called("launch")
        self.streams[stream] += self.graphs[graph]

    def forget(self, graph: int) -> None:
        self._called("forget")
        del self.graphs[graph]

    def put(self, stream: int, work: Work) -> None:
        """Queues work, or captures it."""
        (self.streams[stream] if self.capturing is None else self.capturing).append(work)

    def bytes_at(self, address: int, size: int) -> Array:
        """Memory that was given away, and lies within one piece."""
        for start, block in self.memory.items():
            if start <= address and address + size <= start + block.size:
                return block[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address:x} are nobody's")

    def _copy(self, target: int, source: int, size: int) -> None:
        if size:
            self.bytes_at(target, size)[:] = self.bytes_at(source, size)

    def _called(self, call: str) -> None:
        self.calls.append(call)
        if call == self.fails:
            raise EngineError(f"{call} fails")


@dataclass
class HostEngine:
    """An `ICudaEngine` whose plan is an ONNX graph."""

    device: HostDevice
    contract: Contract
    session: Any
    profiles: list[dict[str, list[int]]]
    device_memory_size_v2: int = 512
    contexts: list[HostContext] = field(default_factory=list)
    library: Any = None

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

    def create_execution_context(self, strategy: Any) -> HostContext:
        assert strategy == self.library.ExecutionContextAllocationStrategy.USER_MANAGED
        self.contexts.append(HostContext(self))
        return self.contexts[-1]


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

    device: HostDevice
    library: Library
    path: Path
    record: EngineRecord
    contract: Contract
    engines: list[HostEngine]


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., Bench]:
    """`bench(graph, contract, {"batch": [1, 2, 4]}, …)`: one profile or several."""
    trt = pytest.importorskip("tensorrt_rtx_bindings.tensorrt_rtx")

    def make(
        graph: Path, contract: Contract, *profiles: Mapping[str, list[int]], **details: Any
    ) -> Bench:
        device = HostDevice()
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
