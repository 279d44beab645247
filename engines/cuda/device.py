"""One GPU as a runner sees it: addresses, copies, a stream, captured graphs.

`Device` is all that engines know of CUDA; `CudaDevice` implements it on `cuda.bindings.runtime`,
NVIDIA's own bindings (decision 0017). An address, a stream and a captured graph are integers.
Importing this module does not load CUDA.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from iblip.engines.cuda.errors import call_checked
from iblip.export.errors import EngineError

Array = npt.NDArray[Any]

INSTALL = "Run `pip install cuda-bindings`; the extras gpu, tensorrt and tensorrt-rtx have it."


@dataclass(frozen=True, kw_only=True)
class BoxCopy:
    """One copy of `Device.copy_boxes`.

    Attributes:
        target, source: addresses of the first bytes.
        width: bytes of each row.
    """

    target: int
    source: int
    width: int


class Device(Protocol):
    """Memory and work of one GPU. Copies and launches are queued on a stream, in order."""

    @property
    def name(self) -> str:
        """The device's name, for messages."""
        ...

    def use(self) -> None:
        """Makes it the GPU of the calling thread. Every thread calls this before anything else."""
        ...

    def allocate(self, size: int) -> int:
        """Allocates `size` bytes of the GPU's memory; returns the address, aligned to 256 bytes."""
        ...

    def free(self, address: int) -> None:
        """Frees what `allocate` returned."""
        ...

    def allocate_pinned(self, size: int) -> Array:
        """Allocates pinned host memory, uint8 `[size]`, which the GPU reads and writes directly."""
        ...

    def free_pinned(self, array: Array) -> None:
        """Frees what `allocate_pinned` returned; the array must not be used afterwards."""
        ...

    def open_stream(self) -> int:
        """Creates a stream: a queue of work."""
        ...

    def close_stream(self, stream: int) -> None:
        """Destroys a stream once its work is done."""
        ...

    def upload(self, address: int, array: Array, stream: int) -> None:
        """Copies a contiguous array to the GPU. It must not change before the copy has run."""
        ...

    def download(self, array: Array, address: int, stream: int) -> None:
        """Copies from the GPU into a contiguous array, which is filled after `synchronize`."""
        ...

    def copy_boxes(
        self,
        boxes: Sequence[BoxCopy],
        *,
        pitch: int,
        rows: int,
        layer: int,
        layers: int,
        stream: int,
        source_pitch: int | None = None,
        source_layer: int | None = None,
    ) -> None:
        """Copies boxes within the GPU, in any order: what is read is not written.

        Args:
            boxes: of each, `layers` times `rows` pieces of its width.
            pitch: bytes from one row of a layer to the next.
            rows: of a layer.
            layer: bytes from one layer to the next, a multiple of `pitch`.
            layers: of a box.
            stream: that the copies are queued on.
            source_pitch, source_layer: as `pitch` and `layer`, of the sources; `None` if the same.
        """
        ...

    def upload_rows(self, address: int, array: Array, *, pitch: int, stream: int) -> None:
        """Copies a contiguous array, row by row of its first axis, to rows `pitch` bytes apart."""
        ...

    def clear(self, address: int, size: int, stream: int) -> None:
        """Sets `size` bytes to zero."""
        ...

    def synchronize(self, stream: int) -> None:
        """Waits until all queued work is done."""
        ...

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """Captures what `work` queues on the stream as a graph to launch later. Runs nothing."""
        ...

    def launch(self, graph: int, stream: int) -> None:
        """Queues a captured graph."""
        ...

    def forget(self, graph: int) -> None:
        """Frees a captured graph."""
        ...


class CudaDevice:
    """A `Device` on `cuda.bindings.runtime`.

    Args:
        number: of the GPU, from 0, among those that CUDA_VISIBLE_DEVICES leaves.
        runtime: the module; `None` imports it.

    Raises:
        EngineError: the bindings are not installed.
        CudaError: there is no driver, or no such GPU.
    """

    def __init__(self, number: int = 0, runtime: Any = None) -> None:
        self._runtime = runtime or load_runtime()
        self._number = number
        self.use()
        properties = self._call("cudaGetDeviceProperties", number, asked=f"device {number}")
        self._name = properties.name.decode(errors="replace")

    @property
    def name(self) -> str:
        """The product's name and the device number."""
        return f"{self._name} (device {self._number})"

    def use(self) -> None:
        """As `Device.use`."""
        self._call("cudaSetDevice", self._number, asked=f"device {self._number}")

    def allocate(self, size: int) -> int:
        """As `Device.allocate`."""
        return int(self._call("cudaMalloc", size, asked=f"{size:,} bytes"))

    def free(self, address: int) -> None:
        """As `Device.free`."""
        self._call("cudaFree", address)

    def allocate_pinned(self, size: int) -> Array:
        """As `Device.allocate_pinned`."""
        flags = self._runtime.cudaHostAllocDefault
        address = int(self._call("cudaHostAlloc", size, flags, asked=f"{size:,} bytes"))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def free_pinned(self, array: Array) -> None:
        """As `Device.free_pinned`."""
        self._call("cudaFreeHost", array.ctypes.data)

    def open_stream(self) -> int:
        """As `Device.open_stream`. It waits for no other stream, the default one included."""
        flags = self._runtime.cudaStreamNonBlocking
        return int(self._call("cudaStreamCreateWithFlags", flags))

    def close_stream(self, stream: int) -> None:
        """As `Device.close_stream`."""
        self._call("cudaStreamDestroy", stream)

    def upload(self, address: int, array: Array, stream: int) -> None:
        """As `Device.upload`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(address, array.ctypes.data, array.nbytes, kind, stream)

    def download(self, array: Array, address: int, stream: int) -> None:
        """As `Device.download`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(array.ctypes.data, address, array.nbytes, kind, stream)

    def copy_boxes(
        self,
        boxes: Sequence[BoxCopy],
        *,
        pitch: int,
        rows: int,
        layer: int,
        layers: int,
        stream: int,
        source_pitch: int | None = None,
        source_layer: int | None = None,
    ) -> None:
        """As `Device.copy_boxes`, in one call."""
        runtime, copies = self._runtime, []
        for box in boxes:
            copy = runtime.cudaMemcpy3DBatchOp()
            copy.srcAccessOrder = runtime.cudaMemcpySrcAccessOrder.cudaMemcpySrcAccessOrderStream
            for operand, address, length, height in (
                (copy.src, box.source, source_pitch or pitch, source_layer or layer),
                (copy.dst, box.target, pitch, layer),
            ):
                operand.type = runtime.cudaMemcpy3DOperandType.cudaMemcpyOperandTypePointer
                operand.op.ptr.ptr = address
                operand.op.ptr.rowLength, operand.op.ptr.layerHeight = length, height // length
            copy.extent.width, copy.extent.height, copy.extent.depth = box.width, rows, layers
            copies.append(copy)
        self._call("cudaMemcpy3DBatchAsync", len(copies), copies, 0, stream)

    def upload_rows(self, address: int, array: Array, *, pitch: int, stream: int) -> None:
        """As `Device.upload_rows`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        if array.nbytes:
            rows, width = array.shape[0], array.nbytes // array.shape[0]
            source = array.ctypes.data
            self._call(
                "cudaMemcpy2DAsync", address, pitch, source, width, width, rows, kind, stream
            )

    def clear(self, address: int, size: int, stream: int) -> None:
        """As `Device.clear`."""
        self._call("cudaMemsetAsync", address, 0, size, stream)

    def synchronize(self, stream: int) -> None:
        """As `Device.synchronize`."""
        self._call("cudaStreamSynchronize", stream)

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """As `Device.capture`. Other threads may go on calling CUDA meanwhile."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        except BaseException:
            # The stream cannot be used until its capture is ended, whether that succeeds or not.
            self._runtime.cudaStreamEndCapture(stream)
            raise
        captured = self._call("cudaStreamEndCapture", stream)
        try:
            return int(self._call("cudaGraphInstantiate", captured, 0))
        finally:
            self._call("cudaGraphDestroy", captured)

    def launch(self, graph: int, stream: int) -> None:
        """As `Device.launch`."""
        self._call("cudaGraphLaunch", graph, stream)

    def forget(self, graph: int) -> None:
        """As `Device.forget`."""
        self._call("cudaGraphExecDestroy", graph)

    def _copy(self, target: int, source: int, size: int, kind: Any, stream: int) -> None:
        if size:
            self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def _call(self, name: str, *arguments: Any, asked: str = "") -> Any:
        return call_checked(self._runtime, name, *arguments, asked=asked)


def load_runtime() -> Any:
    """The module `cuda.bindings.runtime`. Raises `EngineError` if it is not installed."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise EngineError(f"NVIDIA's cuda-bindings cannot be loaded ({error}). {INSTALL}") from (
            error
        )
    return runtime
