"""`merge_low_rank`: a `Weight` with LoRA's two thin matrices merged into it.

Every kind here is a `Weight`, so that recipes, quantisation, digests and links take it as they take
a tensor of a file. A merged weight is float32 and lies in no file: a graph that reads it never
links the file of its source.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from iblip.export.artifact.contract import DTYPES
from iblip.export.errors import CheckpointError
from iblip.export.weights.casts import array_from_tensor, tensor_from_array
from iblip.export.weights.weight import SourceTensor, Weight

if TYPE_CHECKING:
    import torch

BLOCK = 2**22
"""Bytes of float32 that are merged at once, where a row is not longer."""


@dataclass(frozen=True, kw_only=True)
class _Sum:
    """What a weight and something added to it have in common.

    Attributes:
        source: the weight.
    """

    source: Weight

    @property
    def name(self) -> str:
        """Name of the source tensor."""
        return self.source.name

    @property
    def dtype(self) -> str:
        """Always float32, in which the sum is computed."""
        return "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the source tensor."""
        return self.source.shape


@dataclass(frozen=True, kw_only=True)
class Merged(_Sum):
    """A `Weight`: `source + scale * up @ down`, computed in float32, a block of rows at a time.

    `merge_low_rank` makes it, and checks the shapes.

    Attributes:
        source: the weight `[out, in]`, or of more axes, such as a convolution's.
        up, down: `[out, rank]` and `[rank, in]`, or of more axes in the same order.
        scale: factor of the product.
        transposed: whether the weight is stored as `[in, out]`, as a table of embeddings is.
        magnitude: of DoRA (arXiv 2402.09353, equation 5), `[out]`: the length that the merged
            weights of each output are scaled to. `None` leaves it.
    """

    up: Weight
    down: Weight
    scale: float
    transposed: bool = False
    magnitude: Weight | None = None

    @property
    def sources(self) -> tuple[SourceTensor, ...]:
        """The sources of the weight, and then of what is merged into it."""
        parts = (self.source, self.up, self.down, *filter(None, [self.magnitude]))
        return tuple(source for part in parts for source in part.sources)

    def read(self) -> npt.NDArray[Any]:
        """Returns the merged values."""
        values: npt.NDArray[Any] = np.concatenate(list(self.pieces())).reshape(self.shape)
        return values

    def pieces(self) -> Iterator[npt.NDArray[Any]]:
        """Yields blocks of rows, each of at most `BLOCK` bytes or one row."""
        for block in self._rows():
            yield array_from_tensor(block).reshape(self._shape_of_piece(block))

    def _shape_of_piece(self, block: torch.Tensor) -> tuple[int, ...]:
        """A block's shape: rows of the source, unless its first axis is not that of the factors."""
        rows, *rest = self.shape
        if rows != self._rows_and_columns()[0]:
            return block.shape
        return (len(block), *rest)

    def _rows(self) -> Iterator[torch.Tensor]:
        """Yields merged rows `[rows, columns]`, with DoRA's lengths."""
        import torch

        if self.magnitude is None:
            yield from self._sums()
            return
        lengths = _floats(self.magnitude).reshape(-1)
        if not self.transposed:
            start = 0
            for block in self._sums():
                own = torch.linalg.vector_norm(block, dim=1)
                yield block.mul_((lengths[start : start + len(block)] / own)[:, None])
                start += len(block)
            return
        squares = torch.zeros(len(lengths), dtype=torch.float64)
        for block in self._sums():
            squares += block.square().sum(dim=0, dtype=torch.float64)
        factors = lengths / squares.sqrt().to(torch.float32)
        for block in self._sums():
            yield block.mul_(factors)

    def _sums(self) -> Iterator[torch.Tensor]:
        """Yields rows of `source + scale * up @ down`, `[rows, columns]`."""
        import torch

        left, right = self._factors()
        columns, start = right.shape[1], 0
        step = max(1, BLOCK // (4 * columns))
        for piece in self.source.pieces():
            rows = tensor_from_array(piece).reshape(-1, columns)
            for first in range(0, len(rows), step):
                part = rows[first : first + step]
                # A copy in any case: the source's own bytes may be a view of its file.
                block = part.to(torch.float32, copy=True)
                block.addmm_(left[start : start + len(part)], right, alpha=self.scale)
                yield block
                start += len(part)

    def _factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The factors of the product as it is stored, `[rows, rank]` and `[rank, columns]`."""
        rank = self.down.shape[0]
        up, down = _floats(self.up).reshape(-1, rank), _floats(self.down).reshape(rank, -1)
        return (down.T, up.T.contiguous()) if self.transposed else (up, down)

    def _rows_and_columns(self) -> tuple[int, int]:
        """The size of the product as it is stored."""
        rank = self.down.shape[0]
        out, inputs = (math.prod(part.shape) // rank for part in (self.up, self.down))
        return (inputs, out) if self.transposed else (out, inputs)


def merge_low_rank(
    source: Weight,
    *,
    up: Weight,
    down: Weight,
    scale: float,
    transposed: bool = False,
    magnitude: Weight | None = None,
) -> Weight:
    """Returns the weight `source + scale * up @ down` (LoRA, arXiv 2106.09685), read in blocks.

    The one way in which this project merges LoRA, whatever file it comes from. Several adapters of
    a weight are merged by merging into the result.

    Args:
        source: the weight, `[out, in]`, or `[out, in, height, width]` of a convolution.
        up: LoRA's B, `[out, rank]`, or `[out, rank, 1, 1]`.
        down: LoRA's A, `[rank, in]`, or `[rank, in, height, width]`.
        scale: `alpha / rank`, or `alpha / sqrt(rank)` where the adapter was trained so.
        transposed: whether the weight is stored as `[in, out]`, as a table of embeddings is.
        magnitude: of DoRA, `[out]`.

    Raises:
        CheckpointError: the shapes do not fit each other.
    """
    merged = Merged(
        source=source, up=up, down=down, scale=scale, transposed=transposed, magnitude=magnitude
    )
    rank = down.shape[0] if down.shape else 0
    fits = (
        rank > 0
        and len(up.shape) > 1
        and up.shape[1] == rank
        and merged._rows_and_columns() == _rows_and_columns(source.shape, merged)
    )
    if not fits:
        raise CheckpointError(
            f"{source.name} has shape {list(source.shape)}, which LoRA's {up.name}"
            f" {list(up.shape)} and {down.name} {list(down.shape)} do not fit"
        )
    outputs = merged._rows_and_columns()[1 if transposed else 0]
    if magnitude is not None and math.prod(magnitude.shape) != outputs:
        raise CheckpointError(
            f"{magnitude.name} has shape {list(magnitude.shape)}; expected a length for each of"
            f" {outputs} outputs of {source.name}"
        )
    for part in filter(None, (source, up, down, magnitude)):
        if part.dtype not in DTYPES:
            raise CheckpointError(
                f"{part.name} has dtype {part.dtype}, which cannot be merged;"
                f" supported: {', '.join(DTYPES)}"
            )
    return merged


def _rows_and_columns(shape: tuple[int, ...], merged: Merged) -> tuple[int, int]:
    """A weight's shape as a matrix: an axis of 1 before its rows does not count."""
    while len(shape) > 2 and shape[0] == 1 != merged._rows_and_columns()[0]:
        shape = shape[1:]
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (0, 0)


def _floats(weight: Weight) -> torch.Tensor:
    import torch

    return tensor_from_array(weight.read()).to(torch.float32)


@dataclass(frozen=True, kw_only=True)
class Added(_Sum):
    """A `Weight`: `source + scale * other`, of one shape, computed whole in float32: a bias."""

    other: Weight
    scale: float

    @property
    def sources(self) -> tuple[SourceTensor, ...]:
        """The sources of both."""
        return (*self.source.sources, *self.other.sources)

    def read(self) -> npt.NDArray[Any]:
        """Returns the sum."""
        return array_from_tensor(_floats(self.source) + self.scale * _floats(self.other))

    def pieces(self) -> Iterator[npt.NDArray[Any]]:
        """Yields the whole sum."""
        yield self.read()
