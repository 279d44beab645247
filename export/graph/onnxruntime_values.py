"""ONNX Runtime's sessions and values, for graphs of any dtype that a contract has.

Importing this module does not load ONNX Runtime.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from iblip.export.graph.bfloat16 import with_casts

FOLDER = "session.model_external_initializers_file_folder_path"
"""ONNX Runtime's name for where the weights of a model lie that comes as bytes."""

BFLOAT16 = 16
"""ONNX's number for the dtype (`TensorProto.BFLOAT16`)."""

Array = npt.NDArray[Any]


def session_from_onnx(path: Path, options: Any, providers: Sequence[Any]) -> Any:
    """An `onnxruntime.InferenceSession` of the graph at `path`.

    Where ONNX Runtime has no kernel for an operator in bfloat16, all of them get casts around them.

    Args:
        path: of the `.onnx` file; its weights lie beside it.
        options: an `onnxruntime.SessionOptions`; gets to know where the weights are.
        providers: as ONNX Runtime takes them: names, or pairs of a name and its options.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    try:
        return onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except (errors.NotImplemented, errors.InvalidGraph):
        model = with_casts(path)
        if model is None:
            raise
    options.add_session_config_entry(FOLDER, str(path.parent.absolute()))
    return onnxruntime.InferenceSession(model, options, providers=list(providers))


def run(session: Any, names: Sequence[str], feed: Mapping[str, Array]) -> dict[str, Array]:
    """These outputs by name, for inputs of the graph's dtypes."""
    values = {name: value_from_array(array) for name, array in feed.items()}
    found = session.run_with_ort_values(list(names), values)
    return dict(zip(names, map(array_from_value, found), strict=True))


def value_from_array(array: Array) -> Any:
    """An `OrtValue` over the array's own memory, which it keeps alive. On the CPU."""
    import onnxruntime

    array = np.ascontiguousarray(array)
    if array.dtype == ml_dtypes.bfloat16:
        raw = array.view(np.uint16)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def array_from_value(value: Any) -> Array:
    """A numpy array with a copy of the value."""
    if value.element_type() != BFLOAT16:
        return np.asarray(value.numpy())
    shape = value.shape()
    size = int(np.prod(shape))
    if not size:
        return np.empty(shape, ml_dtypes.bfloat16)
    raw = (ctypes.c_uint16 * size).from_address(value.data_ptr())
    array: Array = np.array(raw, dtype=np.uint16).view(ml_dtypes.bfloat16).reshape(shape)
    return array
