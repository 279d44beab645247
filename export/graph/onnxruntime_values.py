"""ONNX Runtime's sessions and values, for graphs of any dtype that a contract has.

Importing this module does not load ONNX Runtime.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from iblip.export.graph.bfloat16 import with_casts
from iblip.export.graph.fusion import fused_path

logger = logging.getLogger(__name__)

FOLDER = "session.model_external_initializers_file_folder_path"
"""ONNX Runtime's setting for the folder of the weights, if a model is passed as bytes."""

EXACT_INTEGERS = "session.x64quantprecision"
"""ONNX Runtime's setting that has it multiply 8-bit integers exactly on processors without VNNI. By
default its kernel for these adds pairs of products in 16 bits, which saturate."""

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

BFLOAT16 = 16
"""ONNX's number for the dtype (`TensorProto.BFLOAT16`)."""

Array = npt.NDArray[Any]


def session_from_onnx(path: Path, options: Any, providers: Sequence[Any]) -> Any:
    """Returns an `onnxruntime.InferenceSession` of the graph at `path`.

    For the CUDA provider, that is the rewritten graph (`export.graph.fusion`), if there is one. If
    ONNX Runtime has no kernel for an operator in bfloat16, every operator computes in float32
    (`export.graph.bfloat16`); where that is not on the CPU, a warning says so.

    Args:
        path: of the `.onnx` file; its weights lie beside it.
        options: an `onnxruntime.SessionOptions`; is given `EXACT_INTEGERS`, and may be given the
            folder of the weights.
        providers: as ONNX Runtime takes them: names, or pairs of a name and its options.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    options.add_session_config_entry(EXACT_INTEGERS, "1")
    names = [name if isinstance(name, str) else name[0] for name in providers]
    fused = fused_path(path) if names[:1] == [CUDA] else path
    try:
        file = str(fused if fused.is_file() else path)
        return onnxruntime.InferenceSession(file, options, providers=list(providers))
    except (errors.NotImplemented, errors.InvalidGraph) as error:
        casts = with_casts(path)
        if casts is None:
            raise
        if names != [CPU]:
            logger.warning("%s computes in float32, not in bfloat16, and slowly: %s", path, error)
    options.add_session_config_entry(FOLDER, str(path.parent.absolute()))
    return onnxruntime.InferenceSession(casts, options, providers=list(providers))


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
