"""`Weight`: a tensor of a checkpoint under transformers' name for it, and its kinds.

A weight is a range of bytes in a file, or is made of such ranges when it is read: joined, viewed
with other strides, filled with a constant. What a graph makes of one is a `Recipe`
(`export.weights.recipe`).

The safetensors format: eight bytes of little-endian header length, a JSON header with each tensor's
dtype, shape and byte range, then the bytes (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from iblip.export.artifact.contract import DTYPES
from iblip.export.errors import CheckpointError

PIECE = 2**25
"""Bytes of a tensor that are in memory at once, where its rows are not longer."""


class Weight(Protocol):
    """A tensor of a checkpoint. Hashable; equal where its bytes come from the same place."""

    @property
    def name(self) -> str:
        """transformers' name of the tensor, or the file's where the reader has not mapped it."""
        ...

    @property
    def dtype(self) -> str:
        """A key of `export.artifact.contract.DTYPES`."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in elements."""
        ...

    @property
    def sources(self) -> tuple[SourceTensor, ...]:
        """The tensors of files that it is made of."""
        ...

    def read(self) -> npt.NDArray[Any]:
        """Returns the values, of `shape` and `dtype`."""
        ...

    def pieces(self) -> Iterator[npt.NDArray[Any]]:
        """Yields the values in consecutive slices along the first axis.

        What lies in a file as it is comes at most `PIECE` bytes or one row at a time; what is
        computed comes whole.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class SourceTensor:
    """A `Weight` that lies in a file as it is.

    Attributes:
        name: in the checkpoint.
        file: the safetensors file.
        offset: of its first byte from the start of the file.
        length: in bytes.
        dtype: a key of `export.artifact.contract.DTYPES`, or the file's own name of one that no
            graph takes.
        shape: in elements.
    """

    name: str
    file: Path
    offset: int
    length: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def sources(self) -> tuple[SourceTensor, ...]:
        """The tensor itself."""
        return (self,)

    def read(self) -> npt.NDArray[Any]:
        """Returns a read-only view of the file, which takes no memory until it is touched."""
        flat = np.memmap(self.file, np.uint8, "r", offset=self.offset, shape=(self.length,))
        return flat.view(DTYPES[self.dtype]).reshape(self.shape)

    def pieces(self) -> Iterator[npt.NDArray[Any]]:
        """Yields slices along the first axis, each of at most `PIECE` bytes or one row.

        They are read and not mapped: the pages of a mapped file count as the process's own memory.

        Raises:
            CheckpointError: the file has become shorter since it was opened.
        """
        rows, *rest = self.shape or (1,)
        size = self.length // max(rows, 1)
        step = max(1, PIECE // max(size, 1))
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            for start in range(0, rows, step):
                part = np.empty(min(step, rows - start) * size, np.uint8)
                if stream.readinto(part.data) != part.nbytes:
                    raise CheckpointError(f"{self.file} ends within {self.name}")
                values = part.view(DTYPES[self.dtype])
                yield values.reshape(-1, *rest) if self.shape else values.reshape(())


@dataclass(frozen=True, kw_only=True)
class Strided:
    """A `Weight` that is a view of another tensor's bytes and is not contiguous.

    Attributes:
        source: the whole storage, in one dimension.
        start: of the view, in elements.
        strides: by axis, in elements.
        shape: in elements.
    """

    source: SourceTensor
    start: int
    strides: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name of the source tensor."""
        return self.source.name

    @property
    def dtype(self) -> str:
        """Dtype of the source tensor."""
        return self.source.dtype

    @property
    def sources(self) -> tuple[SourceTensor, ...]:
        """The source tensor."""
        return (self.source,)

    def read(self) -> npt.NDArray[Any]:
        """Returns a read-only view of the file."""
        flat = self.source.read()[self.start :]
        strides = [step * flat.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)

    def pieces(self) -> Iterator[npt.NDArray[Any]]:
        """Yields the whole view: its rows need not follow one another in the file."""
        yield self.read()


@dataclass(frozen=True, kw_only=True)
class Zeros:
    """A `Weight` of zeros, which no file holds."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def sources(self) -> tuple[SourceTensor, ...]:
        """Empty: no file is read."""
        return ()

    def read(self) -> npt.NDArray[Any]:
        """Returns an array of zeros."""
        return np.zeros(self.shape, DTYPES[self.dtype])

    def pieces(self) -> Iterator[npt.NDArray[Any]]:
        """Yields the whole array."""
        yield self.read()


@dataclass(frozen=True, kw_only=True)
class Ones(Zeros):
    """A `Weight` of ones, which no file holds."""

    def read(self) -> npt.NDArray[Any]:
        """Returns an array of ones."""
        return np.ones(self.shape, DTYPES[self.dtype])


@dataclass(frozen=True, kw_only=True)
class Concatenated:
    """A `Weight` of several of one dtype, concatenated along their first axis."""

    name: str
    parts: tuple[Weight, ...]

    @property
    def dtype(self) -> str:
        """Dtype of every part."""
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a part, with the sum of all first axes."""
        first = sum(part.shape[0] for part in self.parts)
        return (first, *self.parts[0].shape[1:])

    @property
    def sources(self) -> tuple[SourceTensor, ...]:
        """The sources of every part, in order."""
        return tuple(source for part in self.parts for source in part.sources)

    def read(self) -> npt.NDArray[Any]:
        """Returns the parts concatenated in memory."""
        return np.concatenate([part.read() for part in self.parts])

    def pieces(self) -> Iterator[npt.NDArray[Any]]:
        """Yields the pieces of each part in turn."""
        for part in self.parts:
            yield from part.pieces()
