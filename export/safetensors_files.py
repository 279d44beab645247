"""The head of a safetensors file. The format: see `export.weights`, which reads it."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from export.contract import DTYPES
from export.weights import SAFETENSORS_DTYPES

_WORDS = {dtype: word for word, dtype in SAFETENSORS_DTYPES.items()}


def safetensors_header(tensors: Mapping[str, tuple[tuple[int, ...], str]]) -> bytes:
    """What a file begins with that holds `tensors` one behind the other.

    Args:
        tensors: shape in elements, and dtype (a key of `export.contract.DTYPES`), by name.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, dtype) in tensors.items():
        start, end = end, end + math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
        header[name] = {
            "dtype": _WORDS[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # as other writers of the format have it
    return struct.pack("<Q", len(text)) + text
