"""`Recipe`: how a graph's initializer is made of a checkpoint's tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from iblip.export.artifact.contract import DTYPES
from iblip.export.errors import ExportError
from iblip.export.weights.casts import cast
from iblip.export.weights.weight import SourceTensor, Weight


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How an initializer comes from the checkpoint: which tensor, cast to which dtype.

    Attributes:
        source: the tensor that is read.
        dtype: the initializer's dtype, a key of `export.artifact.contract.DTYPES`.
    """

    source: Weight
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the initializer, in elements."""
        return self.source.shape

    @property
    def in_place(self) -> SourceTensor | None:
        """The tensor whose bytes in the checkpoint's file are the initializer's, or `None`."""
        source = self.source
        return source if isinstance(source, SourceTensor) and source.dtype == self.dtype else None

    @property
    def nbytes(self) -> int:
        """Size of the initializer in bytes."""
        return math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize

    def pieces(self) -> Iterator[npt.NDArray[Any]]:
        """Yields the initializer in slices along its first axis; it is never whole in memory.

        Raises:
            ExportError: a finite weight leaves the range of `dtype`.
        """
        for values in self.source.pieces():
            yield values if self.source.dtype == self.dtype else self._cast(values)

    def evaluate(self) -> npt.NDArray[Any]:
        """Returns the whole initializer, as a view of the file if `in_place`.

        Raises:
            ExportError: as `pieces`.
        """
        if self.in_place:
            return self.in_place.read()
        pieces = [np.atleast_1d(piece) for piece in self.pieces()]
        values: npt.NDArray[Any] = np.concatenate(pieces).reshape(self.shape)
        return values

    def _cast(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        converted, finite = cast(values, self.dtype)
        if not finite:
            self._check_range()
        return converted

    def _check_range(self) -> None:
        """Raises ExportError if a weight that is finite in the checkpoint is not after the cast."""
        lost, largest = 0, 0.0
        for values in self.source.pieces():
            floats = np.abs(values.astype(np.float32))
            with np.errstate(over="ignore"):
                cast = floats.astype(DTYPES[self.dtype]).astype(np.float32)
            overflown = np.isfinite(floats) & ~np.isfinite(cast)
            lost += int(np.count_nonzero(overflown))
            largest = max(largest, float(np.max(floats, where=overflown, initial=0)))
        if lost:
            raise ExportError(
                f"{self.source.name}: {lost} of {math.prod(self.shape)} weights leave the range of"
                f" {self.dtype} (largest {largest:.3g}), so answers would change. Build this"
                " component with --precision fp32."
            )
