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
from iblip.export.weights.weight import SourceTensor, Weight, pieces_of


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How an initializer comes from the checkpoint: which tensor, cast to which dtype.

    Attributes:
        source: what is read.
        dtype: what the graph wants, a key of `export.artifact.contract.DTYPES`.
    """

    source: Weight
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result, in elements."""
        return self.source.shape

    @property
    def in_place(self) -> SourceTensor | None:
        """Where the checkpoint's bytes are already what the graph wants; `None` where none are."""
        source = self.source
        return source if isinstance(source, SourceTensor) and source.dtype == self.dtype else None

    @property
    def nbytes(self) -> int:
        """Bytes of the result."""
        return math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize

    def pieces(self) -> Iterator[npt.NDArray[Any]]:
        """The result along its first axis, some at a time: no tensor need be whole in memory.

        Raises:
            ExportError: a finite weight leaves the range of the wanted dtype.
        """
        for values in pieces_of(self.source):
            yield values if self.source.dtype == self.dtype else self._cast(values)

    def evaluate(self) -> npt.NDArray[Any]:
        """The whole result, a view of the file where that has it; raises what `pieces` does."""
        if lies := self.in_place:
            return lies.read()
        pieces = [np.atleast_1d(piece) for piece in self.pieces()]
        made: npt.NDArray[Any] = np.concatenate(pieces).reshape(self.shape)
        return made

    def _cast(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        made, finite = cast(values, self.dtype)
        if not finite:
            self._refuse_lost()
        return made

    def _refuse_lost(self) -> None:
        """Raises ExportError unless what is not finite was so in the checkpoint."""
        lost, largest = 0, 0.0
        for values in pieces_of(self.source):
            floats = np.abs(values.astype(np.float32))
            with np.errstate(over="ignore"):
                cast = floats.astype(DTYPES[self.dtype]).astype(np.float32)
            gone = np.isfinite(floats) & ~np.isfinite(cast)
            lost += int(np.count_nonzero(gone))
            largest = max(largest, float(np.max(floats, where=gone, initial=0)))
        if lost:
            raise ExportError(
                f"{self.source.name}: {lost} of {math.prod(self.shape)} weights leave the range of"
                f" {self.dtype} (largest {largest:.3g}), so answers would change. Build this"
                " component with --precision fp32."
            )
