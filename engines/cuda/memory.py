"""How much memory a GPU has, and how much of it is free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class GpuMemory:
    """A GPU's memory.

    Attributes:
        free: bytes that a new allocation could take; what this process itself has is not free.
        total: bytes.
    """

    free: int
    total: int


def read_memory(number: int) -> GpuMemory | None:
    """The memory of a GPU, by CUDA's own account. Makes it the GPU of the calling thread.

    Args:
        number: of the GPU, from 0, among those that CUDA_VISIBLE_DEVICES leaves.

    Returns:
        `None` where CUDA cannot be asked: what then opens an engine says why.
    """
    try:
        from cuda.bindings import runtime
    except ImportError:
        return None
    cuda: Any = runtime
    (status,) = cuda.cudaSetDevice(number)
    if int(status):
        return None
    status, free, total = cuda.cudaMemGetInfo()
    if int(status):
        return None
    return GpuMemory(free=int(free), total=int(total))
