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
from typing import Any

import numpy as np

from iblip.export.artifact.contract import DTYPES
from iblip.export.errors import CheckpointError
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

_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


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
