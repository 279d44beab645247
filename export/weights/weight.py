"""Where a checkpoint's tensors lie, byte for byte, and the recipes that graphs bind them with.

A `Weight` is a tensor of a checkpoint under transformers' name for it: bytes in a file, or a small
recipe over such. A `Recipe` is what a graph makes of one.

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
        """By which transformers knows it, or the file where the reader has not mapped it yet."""
        ...

    @property
    def dtype(self) -> str:
        """A key of `export.artifact.contract.DTYPES`."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """In elements."""
        ...

    @property
    def sources(self) -> tuple[SourceTensor, ...]:
        """Every tensor of a file that it is made of."""
        ...

    def read(self) -> npt.NDArray[Any]:
        """Its values, in `dtype`."""
        ...


@dataclass(frozen=True, kw_only=True)
class SourceTensor:
    """One tensor of a checkpoint, where it lies: a `Weight`.

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
        """Itself."""
        return (self,)

    def read(self) -> npt.NDArray[Any]:
        """The tensor as a read-only view of the file: no memory until it is touched."""
        flat = np.memmap(self.file, np.uint8, "r", offset=self.offset, shape=(self.length,))
        return flat.view(DTYPES[self.dtype]).reshape(self.shape)

    def pieces(self) -> Iterator[npt.NDArray[Any]]:
        """The tensor along its first axis, at most `PIECE` bytes or one row at a time.

        It is read and not mapped: the pages of a mapped file count as the process's own memory.

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
    """A view of another tensor's bytes that is not contiguous: a `Weight`.

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
        """Of its source."""
        return self.source.name

    @property
    def dtype(self) -> str:
        """Of its source."""
        return self.source.dtype

    @property
    def sources(self) -> tuple[SourceTensor, ...]:
        """See `Weight`."""
        return (self.source,)

    def read(self) -> npt.NDArray[Any]:
        """A read-only view of the file."""
        flat = self.source.read()[self.start :]
        strides = [step * flat.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)


@dataclass(frozen=True, kw_only=True)
class Zeros:
    """A tensor that no file has, because it is 0 throughout: a `Weight`."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def sources(self) -> tuple[SourceTensor, ...]:
        """None."""
        return ()

    def read(self) -> npt.NDArray[Any]:
        """So many zeros."""
        return np.zeros(self.shape, DTYPES[self.dtype])


@dataclass(frozen=True, kw_only=True)
class Ones(Zeros):
    """The same of a tensor that is 1 throughout."""

    def read(self) -> npt.NDArray[Any]:
        """So many ones."""
        return np.ones(self.shape, DTYPES[self.dtype])


@dataclass(frozen=True, kw_only=True)
class Concatenated:
    """Tensors of one dtype, one behind the other along their first axis: a `Weight`."""

    name: str
    parts: tuple[Weight, ...]

    @property
    def dtype(self) -> str:
        """Of every part."""
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Weight`."""
        first = sum(part.shape[0] for part in self.parts)
        return (first, *self.parts[0].shape[1:])

    @property
    def sources(self) -> tuple[SourceTensor, ...]:
        """See `Weight`."""
        return tuple(source for part in self.parts for source in part.sources)

    def read(self) -> npt.NDArray[Any]:
        """The parts, joined in memory."""
        return np.concatenate([part.read() for part in self.parts])


def pieces_of(weight: Weight) -> Iterator[npt.NDArray[Any]]:
    """The values of a weight, some along its first axis at a time.

    Of a tensor that lies in a file as it is, see `SourceTensor.pieces`; others come whole.
    """
    if isinstance(weight, Concatenated):
        for part in weight.parts:
            yield from pieces_of(part)
    elif isinstance(weight, SourceTensor):
        yield from weight.pieces()
    else:
        yield weight.read()
