"""The keys and values of every slot, and small tensors beside them, for a CPU or a GPU.

A cache is `[slots, heads, positions, head_dim]`. This module knows nothing of what a slot holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from iblip.engines.cuda.device import BoxCopy, Device
from iblip.engines.onnxruntime.binding import DeviceArray
from iblip.export.artifact.contract import TensorSpec
from iblip.export.errors import EngineError

Array = npt.NDArray[Any]
Shape = tuple[int, int, int, int]
"""Slots, heads, positions, head_dim."""

Copy = tuple[int, int, slice]
"""From one slot to the same positions of another: its row, the other's row, the positions."""


class Caches(Protocol):
    """The caches of one model, named as the decoder's inputs."""

    @property
    def names(self) -> Iterable[str]:
        """The names of all caches."""
        ...

    def rows(self, name: str, first: int, count: int) -> Array | DeviceArray:
        """Consecutive slots of a cache, in place: `[count, heads, positions, head_dim]`."""
        ...

    def copy(self, prefix: str, copies: Sequence[Copy]) -> None:
        """Copies within all caches whose names begin so. No row is both a source and a target."""
        ...

    def clear(self, row: int) -> None:
        """Sets a slot to zero in all caches."""
        ...

    def lend(self, prefix: str, positions: int) -> dict[str, Array] | dict[str, DeviceArray]:
        """Memory for `[1, heads, positions, head_dim]` of each cache whose name begins so.

        A graph may leave its outputs there; the next call lends the same memory.
        """
        ...

    def take(self, prefix: str, positions: int, row: int) -> None:
        """Copies what was left in the lent memory to the beginning of a slot."""
        ...

    def stage(
        self, shape: tuple[int, ...], dtype: npt.DTypeLike
    ) -> tuple[Array, Array | DeviceArray]:
        """Makes a tensor of zeros that this process and the graphs read and write in place.

        Returns:
            The array, and the same memory to bind.
        """
        ...

    def keep(self, array: Array) -> Array | DeviceArray:
        """Copies an array that will not change to where the graphs read it."""
        ...

    def close(self) -> None:
        """Frees the memory."""
        ...


class HostCaches:
    """`Caches` in the host's memory. Positions that no sequence has reached take no memory yet.

    Args:
        specs: the decoder's inputs that are caches.
        shape: of each.

    Attributes:
        buffers: the caches by name, each `[slots, heads, positions, head_dim]`.

    Raises:
        EngineError: no process can address that much.
    """

    def __init__(self, specs: Iterable[TensorSpec], shape: Shape) -> None:
        try:
            self.buffers = {spec.name: np.zeros(shape, spec.numpy_dtype) for spec in specs}
        except (MemoryError, ValueError) as error:
            raise EngineError(
                f"{shape[0]} slots of {shape[2]} positions need more memory than this machine gives"
                f" a process ({error}). Build with fewer: --slots, --max-length."
            ) from error
        self._lent: dict[str, Array] = {}

    @property
    def names(self) -> Iterable[str]:
        """The names of all caches."""
        return self.buffers

    def rows(self, name: str, first: int, count: int) -> Array:
        """As `Caches.rows`."""
        return self.buffers[name][first : first + count]

    def copy(self, prefix: str, copies: Sequence[Copy]) -> None:
        """As `Caches.copy`."""
        for name, buffer in self.buffers.items():
            if name.startswith(prefix):
                for source, target, place in copies:
                    buffer[target, :, place] = buffer[source, :, place]

    def clear(self, row: int) -> None:
        """As `Caches.clear`."""
        for buffer in self.buffers.values():
            buffer[row] = 0

    def lend(self, prefix: str, positions: int) -> dict[str, Array]:
        """As `Caches.lend`."""
        self._lent = {
            name: np.empty((1, buffer.shape[1], positions, buffer.shape[3]), buffer.dtype)
            for name, buffer in self.buffers.items()
            if name.startswith(prefix)
        }
        return self._lent

    def take(self, prefix: str, positions: int, row: int) -> None:
        """As `Caches.take`."""
        for name, array in self._lent.items():
            self.buffers[name][row, :, :positions] = array[0]
        self._lent = {}

    def stage(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> tuple[Array, Array]:
        """As `Caches.stage`."""
        array = np.zeros(shape, dtype)
        return array, array

    def keep(self, array: Array) -> Array:
        """As `Caches.keep`."""
        return array

    def close(self) -> None:
        """As `Caches.close`."""
        self.buffers.clear()


class DeviceCaches:
    """`Caches` in a GPU's memory: one block, in which the caches lie one after another.

    Staged tensors lie in pinned host memory, which the GPU reads and writes itself: a step then
    copies nothing.

    Args:
        specs: the decoder's inputs that are caches, all of one size of element.
        shape: of each.
        device: the GPU.
        number: the GPU's number, from 0.
        memory: ONNX Runtime's name of its memory.

    Raises:
        CudaError: the GPU has too little memory.
    """

    def __init__(
        self,
        specs: Iterable[TensorSpec],
        shape: Shape,
        device: Device,
        number: int,
        *,
        memory: str = "cuda",
    ) -> None:
        self._shape, self._device = shape, device
        self._number, self._memory = number, memory
        self._dtypes = {spec.name: spec.numpy_dtype for spec in specs}
        (self._itemsize,) = {dtype.itemsize for dtype in self._dtypes.values()}
        self._names = list(self._dtypes)
        self._blocks: list[int] = []  # what was allocated on the GPU; the caches are the first
        self._pinned: list[Array] = []
        self._lent, self._lent_size = 0, 0  # address and bytes
        device.use()
        self._stream = device.open_stream()
        try:
            size = len(self._names) * self._bytes(math.prod(shape[:3]))
            self._blocks.append(device.allocate(size))
            device.clear(self._blocks[0], size, self._stream)
            device.synchronize(self._stream)
        except BaseException:
            self.close()
            raise

    @property
    def names(self) -> Iterable[str]:
        """The names of all caches."""
        return self._names

    def rows(self, name: str, first: int, count: int) -> DeviceArray:
        """As `Caches.rows`."""
        return self._array(
            self._address(name, first, 0), (count, *self._shape[1:]), self._dtypes[name]
        )

    def copy(self, prefix: str, copies: Sequence[Copy]) -> None:
        """As `Caches.copy`: a box has all heads of all caches, which lie equally far apart."""
        named = self._named(prefix)
        slots, heads, positions, _ = self._shape
        boxes = []
        for source, target, place in copies:
            start, stop, _ = place.indices(positions)
            if start < stop:
                at = [self._address(named[0], row, start) for row in (target, source)]
                boxes.append(BoxCopy(target=at[0], source=at[1], width=self._bytes(stop - start)))
        if not boxes:
            return
        self._device.use()
        self._device.copy_boxes(
            boxes,
            pitch=self._bytes(positions),
            rows=heads,
            layer=self._bytes(slots * heads * positions),
            layers=len(named),
            stream=self._stream,
        )
        self._device.synchronize(self._stream)

    def clear(self, row: int) -> None:
        """As `Caches.clear`."""
        _, heads, positions, _ = self._shape
        self._device.use()
        for name in self._names:
            size = self._bytes(heads * positions)
            self._device.clear(self._address(name, row, 0), size, self._stream)
        self._device.synchronize(self._stream)

    def lend(self, prefix: str, positions: int) -> dict[str, DeviceArray]:
        """As `Caches.lend`. The block grows to the longest that was asked for."""
        named, (_, heads, _, head_dim) = self._named(prefix), self._shape
        each = self._bytes(heads * positions)
        size = len(named) * each
        if size > self._lent_size:
            self._device.use()
            if self._lent:
                self._device.free(self._lent)
            self._lent_size, self._lent = 0, 0  # should the allocation fail
            self._lent, self._lent_size = self._device.allocate(size), size
        shape = (1, heads, positions, head_dim)
        return {
            name: self._array(self._lent + index * each, shape, self._dtypes[name])
            for index, name in enumerate(named)
        }

    def take(self, prefix: str, positions: int, row: int) -> None:
        """As `Caches.take`: one copy of all heads of all caches."""
        named, (slots, heads, capacity, _) = self._named(prefix), self._shape
        width = self._bytes(positions)
        self._device.use()
        self._device.copy_boxes(
            [BoxCopy(target=self._address(named[0], row, 0), source=self._lent, width=width)],
            pitch=self._bytes(capacity),
            rows=heads,
            layer=self._bytes(slots * heads * capacity),
            layers=len(named),
            source_pitch=width,
            source_layer=heads * width,
            stream=self._stream,
        )
        self._device.synchronize(self._stream)

    def stage(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> tuple[Array, DeviceArray]:
        """As `Caches.stage`."""
        kind = np.dtype(dtype)
        self._device.use()
        block = self._device.allocate_pinned(math.prod(shape) * kind.itemsize)
        self._pinned.append(block)
        block[:] = 0
        return block.view(kind).reshape(shape), self._array(block.ctypes.data, shape, kind)

    def keep(self, array: Array) -> DeviceArray:
        """As `Caches.keep`."""
        self._device.use()
        self._blocks.append(self._device.allocate(array.nbytes))
        whole = np.ascontiguousarray(array).reshape(1, -1)
        self._device.upload_rows(self._blocks[-1], whole, pitch=array.nbytes, stream=self._stream)
        self._device.synchronize(self._stream)
        return self._array(self._blocks[-1], array.shape, array.dtype)

    def close(self) -> None:
        """As `Caches.close`."""
        self._device.use()
        while self._blocks:
            self._device.free(self._blocks.pop())
        if self._lent:
            self._device.free(self._lent)
            self._lent = 0
        while self._pinned:
            self._device.free_pinned(self._pinned.pop())
        self._device.close_stream(self._stream)

    def _named(self, prefix: str) -> list[str]:
        """The caches whose names begin so; they lie together."""
        at = [index for index, name in enumerate(self._names) if name.startswith(prefix)]
        assert at == list(range(at[0], at[-1] + 1)), "caches of a prefix lie together"
        return self._names[at[0] : at[-1] + 1]

    def _array(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        return DeviceArray(
            address=address, shape=shape, dtype=dtype, memory=self._memory, device=self._number
        )

    def _address(self, name: str, row: int, position: int) -> int:
        """The address of one position of a slot, in its first head."""
        slots, heads, positions, _ = self._shape
        before = self._names.index(name) * slots + row
        return self._blocks[0] + self._bytes(before * heads * positions + position)

    def _bytes(self, positions: int) -> int:
        return positions * self._shape[3] * self._itemsize
