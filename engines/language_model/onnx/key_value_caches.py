"""The keys and values of every slot, in the host's memory or in a GPU's.

A cache is `[slots, heads, positions, head_dim]`. This module knows nothing of what a slot holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from iblip.engines.cuda.device import Device
from iblip.engines.onnxruntime.binding import DeviceArray
from iblip.export.artifact.contract import TensorSpec

Array = npt.NDArray[Any]
Shape = tuple[int, int, int, int]
"""Slots, heads, positions, head_dim."""


class Caches(Protocol):
    """The caches of one model, named as the decoder's inputs."""

    @property
    def names(self) -> Iterable[str]:
        """The names of all caches."""
        ...

    def rows(self, name: str, first: int, count: int) -> Array | DeviceArray:
        """Consecutive slots of a cache, in place: `[count, heads, positions, head_dim]`."""
        ...

    def copy(self, names: Iterable[str], source: int, target: int, place: slice) -> None:
        """Copies the positions `place` of one slot to the same positions of another."""
        ...

    def write(self, arrays: Mapping[str, Array], row: int) -> None:
        """Writes arrays `[heads, positions, head_dim]` to the beginning of a slot."""
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
    """

    def __init__(self, specs: Iterable[TensorSpec], shape: Shape) -> None:
        self.buffers = {spec.name: np.zeros(shape, spec.numpy_dtype) for spec in specs}

    @property
    def names(self) -> Iterable[str]:
        """The names of all caches."""
        return self.buffers

    def rows(self, name: str, first: int, count: int) -> Array:
        """As `Caches.rows`."""
        return self.buffers[name][first : first + count]

    def copy(self, names: Iterable[str], source: int, target: int, place: slice) -> None:
        """As `Caches.copy`."""
        for name in names:
            buffer = self.buffers[name]
            buffer[target, :, place] = buffer[source, :, place]

    def write(self, arrays: Mapping[str, Array], row: int) -> None:
        """As `Caches.write`."""
        for name, array in arrays.items():
            self.buffers[name][row, :, : array.shape[1]] = array

    def close(self) -> None:
        """As `Caches.close`."""
        self.buffers.clear()


class DeviceCaches:
    """`Caches` in a GPU's memory, all of it allocated at once.

    Args:
        specs: the decoder's inputs that are caches.
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
        self._addresses: dict[str, int] = {}
        self._dtypes = {spec.name: spec.numpy_dtype for spec in specs}
        device.use()
        self._stream = device.open_stream()
        try:
            for name, dtype in self._dtypes.items():
                size = math.prod(shape) * dtype.itemsize
                self._addresses[name] = device.allocate(size)
                device.clear(self._addresses[name], size, self._stream)
            device.synchronize(self._stream)
        except BaseException:
            self.close()
            raise

    @property
    def names(self) -> Iterable[str]:
        """The names of all caches."""
        return self._dtypes

    def rows(self, name: str, first: int, count: int) -> DeviceArray:
        """As `Caches.rows`."""
        return DeviceArray(
            address=self._address(name, first, 0),
            shape=(count, *self._shape[1:]),
            dtype=self._dtypes[name],
            memory=self._memory,
            device=self._number,
        )

    def copy(self, names: Iterable[str], source: int, target: int, place: slice) -> None:
        """As `Caches.copy`."""
        start, stop, _ = place.indices(self._shape[2])
        self._device.use()
        for name in names:
            self._device.copy_rows(
                self._address(name, target, start),
                self._address(name, source, start),
                pitch=self._bytes(name, self._shape[2]),
                width=self._bytes(name, stop - start),
                rows=self._shape[1],
                stream=self._stream,
            )
        self._device.synchronize(self._stream)

    def write(self, arrays: Mapping[str, Array], row: int) -> None:
        """As `Caches.write`."""
        self._device.use()
        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        for name, array in whole.items():
            self._device.upload_rows(
                self._address(name, row, 0),
                array,
                pitch=self._bytes(name, self._shape[2]),
                stream=self._stream,
            )
        self._device.synchronize(self._stream)

    def close(self) -> None:
        """As `Caches.close`."""
        self._device.use()
        while self._addresses:
            _, address = self._addresses.popitem()
            self._device.free(address)
        self._device.close_stream(self._stream)

    def _address(self, name: str, row: int, position: int) -> int:
        """The address of one position of a slot, in its first head."""
        _, heads, positions, _ = self._shape
        return self._addresses[name] + self._bytes(name, row * heads * positions + position)

    def _bytes(self, name: str, positions: int) -> int:
        return max(positions, 0) * self._shape[3] * self._dtypes[name].itemsize
