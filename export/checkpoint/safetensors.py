"""Reads and writes the header of a safetensors file.

Eight bytes of little-endian header length, a JSON header with each tensor's dtype, shape and byte
range, then the bytes (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import numpy as np

from iblip.export.artifact.contract import DTYPES
from iblip.export.errors import CheckpointError
from iblip.export.messages import printable, shown
from iblip.export.system.files import refuse_irregular
from iblip.export.system.json_text import parse_json
from iblip.export.weights.weight import SourceTensor

SAFETENSORS_DTYPES: Mapping[str, str] = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "U8": "uint8",
}
"""The contract's dtypes, by safetensors' names."""

BITS: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("U8", "I8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    "F4": 4,
}
"""Bits of an element, by safetensors' names; a file may have newer ones, which no graph takes."""

MAX_HEADER = 100_000_000
"""Bytes of the largest header that the format allows."""

_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


class Readable(Protocol):
    """A file, or its bytes as they arrive."""

    def read(self, size: int, /) -> bytes:
        """The next `size` bytes, or all there are if they are fewer."""
        ...


def safetensors_header(tensors: Mapping[str, tuple[tuple[int, ...], str]]) -> bytes:
    """Returns the header of a file that holds `tensors` one after another.

    Args:
        tensors: shape in elements, and dtype (a key of `export.artifact.contract.DTYPES`), by name.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, dtype) in tensors.items():
        start, end = end, end + math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # as other writers of the format have it
    return struct.pack("<Q", len(text)) + text


def tensors_from_safetensors(file: Path) -> dict[str, SourceTensor]:
    """Returns the tensors of a file by name. Only its header is read.

    The header must follow the format's own rules: the tensors fill the file in some order, without
    gaps or overlaps, each with as many bytes as its dtype and shape make.

    Raises:
        CheckpointError: the file is missing, truncated, or not safetensors.
    """
    try:
        refuse_irregular(file)
        with file.open("rb") as stream:
            return tensors_from_stream(stream, file, file.stat().st_size)
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error


def tensors_from_stream(stream: Readable, file: Path, size: int) -> dict[str, SourceTensor]:
    """Returns the tensors of a file by name, whose bytes may be elsewhere still.

    Args:
        stream: the file from its beginning; only its header is read.
        file: where the tensors will be read from.
        size: of the whole file, in bytes.

    Raises:
        CheckpointError: it is not safetensors, or of another size than its header describes.
    """
    try:
        (header_length,) = struct.unpack("<Q", stream.read(8))
        if header_length > min(size, MAX_HEADER):
            raise CheckpointError(f"{file} is not safetensors, or is cut off in its header")
        header = parse_json(stream.read(header_length), unique=True)
        tensors = _tensors(file, 8 + header_length, header)
    except (struct.error, ValueError) as error:
        raise CheckpointError(f"{file} is not a safetensors file ({error})") from error
    end = max((t.offset + t.length for t in tensors.values()), default=8 + header_length)
    if size != end:
        message = f"{file} has {size:,} bytes, but its header describes {end:,}. Download it again."
        raise CheckpointError(message)
    return tensors


def _tensors(file: Path, start: int, header: object) -> dict[str, SourceTensor]:
    """The tensors of a header, whose bytes begin at `start`. Raises ValueError."""
    if not isinstance(header, dict):
        raise ValueError(f"its header is {shown(header)}; expected an object")
    header.pop("__metadata__", None)
    tensors = {name: _source(name, file, start, entry) for name, entry in header.items()}
    end = start
    for tensor in sorted(tensors.values(), key=lambda one: (one.offset, one.length)):
        if tensor.offset != end:
            found = "overlaps another" if tensor.offset < end else "follows a gap"
            raise ValueError(f"{shown(tensor.name)} {found}, at byte {tensor.offset}, not {end}")
        end += tensor.length
    return tensors


def _source(name: str, file: Path, start: int, entry: object) -> SourceTensor:
    """One entry of a header. Raises ValueError."""
    if printable(name) != name:
        raise ValueError(f"the name {shown(name)} has characters that no name has")
    if not isinstance(entry, dict):
        raise ValueError(f"{shown(name)} is {shown(entry)}; expected an object")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (isinstance(dtype, str) and _are_counts(shape) and _are_counts(offsets)):
        raise ValueError(
            f"{shown(name)} is {shown(entry)}; expected dtype, shape and data_offsets, the numbers "
            "0 or more"
        )
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{shown(name)} has data_offsets {shown(offsets)}; expected begin and end")
    first, last = offsets
    bits = math.prod(shape) * BITS[dtype] if dtype in BITS else None
    if bits is not None and bits != (last - first) * 8:
        raise ValueError(
            f"{shown(name)} has {last - first:,} bytes, and {dtype} {shown(shape)} {bits / 8:,g}"
        )
    return SourceTensor(
        name=name,
        file=file,
        offset=start + first,
        length=last - first,
        dtype=SAFETENSORS_DTYPES.get(dtype, dtype),
        shape=tuple(shape),
    )


def _are_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(one) is int and 0 <= one < 2**63 for one in value)
