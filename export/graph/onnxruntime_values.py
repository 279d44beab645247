"""ONNX Runtime's sessions and values, for graphs of any dtype that a contract has.

Importing this module does not load ONNX Runtime.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from iblip.export.graph.bfloat16 import with_casts

FOLDER = "session.model_external_initializers_file_folder_path"
"""ONNX Runtime's setting for the folder of the weights, if a model is passed as bytes."""

BFLOAT16 = 16
"""ONNX's number for the dtype (`TensorProto.BFLOAT16`)."""

Array = npt.NDArray[Any]


Rewrite = Callable[[Path], bytes | None]
"""Makes another graph of the one at a path; `None` if it leaves it as it is."""


def session_from_onnx(
    path: Path, options: Any, providers: Sequence[Any], *, rewrite: Rewrite | None = None
) -> Any:
    """Returns an `onnxruntime.InferenceSession` of the graph at `path`.

    If ONNX Runtime has no kernel for an operator in bfloat16, every operator computes in float32
    (`export.graph.bfloat16`).

    Args:
        path: of the `.onnx` file; its weights lie beside it.
        options: an `onnxruntime.SessionOptions`; may be given the folder of the weights.
        providers: as ONNX Runtime takes them: names, or pairs of a name and its options.
        rewrite: is given the path; ONNX Runtime opens what it returns instead.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    def open_as(model: str | bytes) -> Any:
        if isinstance(model, bytes):
            options.add_session_config_entry(FOLDER, str(path.parent.absolute()))
        return onnxruntime.InferenceSession(model, options, providers=list(providers))

    try:
        return open_as((rewrite(path) if rewrite else None) or str(path))
    except (errors.NotImplemented, errors.InvalidGraph):
        model = with_casts(path)
        if model is None:
            raise
    return open_as(model)


def run(session: Any, names: Sequence[str], feed: Mapping[str, Array]) -> dict[str, Array]:
    """Runs a session on inputs of the graph's dtypes, and returns the outputs `names`."""
    values = {name: value_from_array(array) for name, array in feed.items()}
    outputs = session.run_with_ort_values(list(names), values)
    return dict(zip(names, map(array_from_value, outputs), strict=True))


def value_from_array(array: Array) -> Any:
    """Returns an `OrtValue` on the CPU over the array's own memory, which it keeps alive."""
    import onnxruntime

    array = np.ascontiguousarray(array)
    if array.dtype == ml_dtypes.bfloat16:
        raw = array.view(np.uint16)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def array_from_value(value: Any) -> Array:
    """Returns a copy of the value as a numpy array."""
    if value.element_type() != BFLOAT16:
        return np.asarray(value.numpy())
    shape = value.shape()
    size = int(np.prod(shape))
    if not size:
        return np.empty(shape, ml_dtypes.bfloat16)
    raw = (ctypes.c_uint16 * size).from_address(value.data_ptr())
    array: Array = np.array(raw, dtype=np.uint16).view(ml_dtypes.bfloat16).reshape(shape)
    return array
