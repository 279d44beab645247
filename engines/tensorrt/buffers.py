"""The memory of a plan's runs: allocated once, for the largest shapes, and used by every run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack

from iblip.engines.cuda.device import Array, Device
from iblip.engines.tensorrt.profile import Shape
from iblip.export.artifact.contract import TensorSpec


class Buffers:
    """Memory of the GPU and of the host for every tensor, and the plan's scratch memory.

    Args:
        device: the GPU.
        sizes: name of every tensor to its largest size in bytes.
        scratch: bytes of scratch memory, which all contexts share, one at a time.

    Attributes:
        addresses: address of every tensor in the GPU's memory.
        scratch: the address and the size of the scratch memory.

    Raises:
        CudaError: there is too little memory; what was allocated is freed.
    """

    def __init__(self, device: Device, sizes: Mapping[str, int], scratch: int) -> None:
        with ExitStack() as stack:
            self.addresses = {name: _allocate(stack, device, size) for name, size in sizes.items()}
            self.scratch = _allocate(stack, device, scratch), scratch
            self._host: dict[str, Array] = {}
            for name, size in sizes.items():
                self._host[name] = device.allocate_pinned(max(size, 1))
                stack.callback(device.free_pinned, self._host[name])
            self._stack = stack.pop_all()

    def host(self, spec: TensorSpec, shape: Shape) -> Array:
        """The pinned host memory of a tensor, as an array of `shape`; always the same memory."""
        size = math.prod(shape) * spec.numpy_dtype.itemsize
        return self._host[spec.name][:size].view(spec.numpy_dtype).reshape(shape)

    def close(self) -> None:
        """Frees the memory."""
        self._host.clear()
        self._stack.close()


def _allocate(stack: ExitStack, device: Device, size: int) -> int:
    # Every tensor needs an address, even an empty one.
    address = device.allocate(max(size, 1))
    stack.callback(device.free, address)
    return address
