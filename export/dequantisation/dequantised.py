"""`Dequantised`: a `Weight` that is computed from a quantised one when it is read."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from iblip.export.artifact.contract import DTYPES
from iblip.export.errors import CheckpointError
from iblip.export.weights.casts import array_from_tensor, tensor_from_array
from iblip.export.weights.weight import SourceTensor, Weight

if TYPE_CHECKING:
    import torch

BLOCK = 2**20
"""Elements that are dequantised at once, where a row is not longer."""

FLOATS = frozenset({"float16", "bfloat16", "float32"})
"""Dtypes that a weight may be dequantised to."""


@dataclass(frozen=True, kw_only=True)
class Dequantised(ABC):
    """A `Weight` that lies in no file as it is: a graph that reads it never links its sources.

    Attributes:
        name: of the weight, as the checkpoint would call it if it were not quantised.
        dtype: that the library dequantises it to, one of `FLOATS`.
        shape: `[out, in]`, or one axis of all elements if only the file's header could be read.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    @abstractmethod
    def method(self) -> str:
        """The library, and its kind of quantisation."""

    @property
    @abstractmethod
    def parts(self) -> tuple[Weight, ...]:
        """The tensors that it is computed from."""

    @abstractmethod
    def rows(self, first: int, last: int) -> torch.Tensor:
        """Dequantises the rows from `first` to before `last`: `[last - first, in]`, of `dtype`."""

    @property
    def sources(self) -> tuple[SourceTensor, ...]:
        """The sources of all parts, in order."""
        return tuple(source for part in self.parts for source in part.sources)

    def read(self) -> npt.NDArray[Any]:
        """Returns the dequantised values."""
        values: npt.NDArray[Any] = np.concatenate(list(self.pieces()))
        return values

    def pieces(self) -> Iterator[npt.NDArray[Any]]:
        """Yields blocks of rows, each of at most `BLOCK` elements or one row.

        Raises:
            CheckpointError: a part holds values that its library never writes.
        """
        count, *rest = self.shape
        step = max(1, BLOCK // max(1, math.prod(rest)))
        for first in range(0, count, step):
            yield array_from_tensor(self.rows(first, min(first + step, count)).contiguous())


def check_parts(name: str, shapes: Mapping[str, tuple[Weight, tuple[int, ...]]]) -> None:
    """Compares the tensors of a quantised weight with what its method makes of one.

    Args:
        name: of the weight.
        shapes: each tensor and the shape that is expected of it, by its own name.

    Raises:
        CheckpointError: one has another shape, or a dtype that is never read.
    """
    for part, (tensor, shape) in shapes.items():
        if tensor.shape != shape:
            fault = f"{part} has shape {list(tensor.shape)}, expected {list(shape)}"
        elif tensor.dtype not in DTYPES:
            fault = f"{part} has dtype {tensor.dtype}; supported: {', '.join(DTYPES)}"
        else:
            continue
        raise CheckpointError(f"{name} is quantised, and its tensors do not fit: {fault}")


def as_bytes(tensor: Weight) -> SourceTensor:
    """Returns the tensor's bytes as one axis of uint8, whatever dtype its file has.

    Raises:
        CheckpointError: they do not follow one another in a file.
    """
    if not isinstance(tensor, SourceTensor):
        raise CheckpointError(f"{tensor.name} is quantised, and is not contiguous in its file")
    return replace(tensor, dtype="uint8", shape=(tensor.length,))


def read_floats(tensor: Weight) -> torch.Tensor:
    """Returns the values of a small tensor in float32, in one axis."""
    import torch

    return tensor_from_array(tensor.read()).to(torch.float32).reshape(-1)
