"""Where a checkpoint's tensors lie, byte for byte, and the recipes that graphs bind them with.

A `Weight` is a tensor of a checkpoint under transformers' name for it: bytes in a file, or a small
recipe over such. A `Recipe` is what a graph makes of one.

The safetensors format: eight bytes of little-endian header length, a JSON header with each tensor's
dtype, shape and byte range, then the bytes (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from export.casts import cast
from export.contract import DTYPES
from export.errors import CheckpointError, ExportError
from export.faults import listed, nearest

SAFETENSORS_DTYPES: Mapping[str, str] = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "U8": "uint8",
}
"""Safetensors' word for a dtype to the contract's."""

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
        """A key of `export.contract.DTYPES`."""
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
        dtype: a key of `export.contract.DTYPES`, or what the file calls one that no graph takes.
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


def tensors_from_safetensors(file: Path) -> dict[str, SourceTensor]:
    """Reads a file's header, and nothing else of it.

    Raises:
        CheckpointError: the file is missing, truncated, or not safetensors.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            (header_length,) = struct.unpack("<Q", stream.read(8))
            if header_length > size:
                raise CheckpointError(f"{file} is not safetensors, or is cut off in its header")
            header = json.loads(stream.read(header_length))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing") from None
    except (struct.error, ValueError) as error:
        raise CheckpointError(f"{file} is not a safetensors file ({error})") from error
    header.pop("__metadata__", None)
    start = 8 + header_length
    tensors = {name: _source(name, file, start, entry) for name, entry in header.items()}
    end = max((t.offset + t.length for t in tensors.values()), default=start)
    if size != end:
        message = f"{file} has {size:,} bytes, but its header describes {end:,}. Download it again."
        raise CheckpointError(message)
    return tensors


def _source(name: str, file: Path, start: int, entry: Mapping[str, Any]) -> SourceTensor:
    first, last = entry["data_offsets"]
    return SourceTensor(
        name=name,
        file=file,
        offset=start + first,
        length=last - first,
        dtype=SAFETENSORS_DTYPES.get(entry["dtype"], entry["dtype"]),
        shape=tuple(entry["shape"]),
    )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How an initializer comes from the checkpoint: which tensor, cast to which dtype.

    Attributes:
        source: what is read.
        dtype: what the graph wants, a key of `export.contract.DTYPES`.
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


def bind(
    wanted: Mapping[str, tuple[tuple[int, ...], str]],
    tensors: Mapping[str, Weight],
    tied: Mapping[str, str],
) -> dict[str, Recipe]:
    """Finds the source of every weight that a graph wants.

    Args:
        wanted: initializer name to its shape and dtype.
        tensors: the checkpoint's, by name.
        tied: where a weight is to be found that the checkpoint does not have under its own name.

    Raises:
        CheckpointError: listing every tensor that is missing, with the nearest that is there, and
            every tensor of another shape.
    """
    if faults := misfits(wanted, tensors, tied):
        raise CheckpointError(f"the checkpoint does not fit its own config:\n  {listed(faults)}")
    sources = {name: tensors.get(name) or tensors[tied[name]] for name in wanted}
    return {name: Recipe(source=sources[name], dtype=dtype) for name, (_, dtype) in wanted.items()}


def misfits(
    wanted: Mapping[str, tuple[tuple[int, ...], str]],
    tensors: Mapping[str, Weight],
    tied: Mapping[str, str],
) -> list[str]:
    """What `bind` would not find, a line each: missing, of another shape, or of no usable dtype."""
    faults, spare = [], [name for name in tensors if name not in wanted] or list(tensors)
    for name, (shape, _) in wanted.items():
        source = tensors.get(name) or tensors.get(tied.get(name, ""))
        if source is None:
            faults.append(f"{name} is missing{nearest(name, spare)}")
        elif source.shape != shape:
            faults.append(f"{name} has shape {list(source.shape)}, wanted {list(shape)}")
        elif source.dtype not in DTYPES:
            faults.append(f"{name} has dtype {source.dtype}; supported: {', '.join(DTYPES)}")
    return faults
