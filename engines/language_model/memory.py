"""Memory that the system gives a page at a time, when it is first written."""

from __future__ import annotations

import contextlib
import math
import mmap

import numpy as np
import numpy.typing as npt

from engines.language_model.slots import Array


def zeros_on_demand(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Zeros, of which only the pages that are written take memory.

    `np.zeros` asks for huge pages of 2 MiB instead (numpy's `NUMPY_MADVISE_HUGEPAGE`). A slot's
    caches are a run of positions a head, of 1 MiB for 2,048 positions of LLaMA: its first token
    would then take the memory of all of them, 2 GiB a slot at 7 B.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # systems without huge pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.ndarray(shape, dtype, buffer=memory)
