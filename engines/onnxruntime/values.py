"""Outputs of ONNX Runtime that stay in the memory where it put them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from iblip.export.errors import EngineError
from iblip.export.graph.onnxruntime_values import BFLOAT16, array_from_value, value_from_array

Array = npt.NDArray[Any]


class KeptTensor:
    """A tensor in the memory where ONNX Runtime left it, such as a GPU's.

    numpy can read it like an array and gets a copy in the host's memory; it raises `EngineError`
    where ONNX Runtime cannot copy it. Fed to another session, it stays where it is.

    Args:
        value: an `onnxruntime.OrtValue`.
        dtype: numpy's, or ml_dtypes' bfloat16.
    """

    def __init__(self, value: Any, dtype: np.dtype[Any]) -> None:
        self.value, self.dtype = value, dtype
        self.shape: tuple[int, ...] = tuple(value.shape())

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return _copy_to_host(self.value).astype(dtype or self.dtype, copy=False)


def value_of(array: Array | KeptTensor) -> Any:
    """The `OrtValue` of a kept tensor, or a new one over an array's own memory."""
    return array.value if isinstance(array, KeptTensor) else value_from_array(array)


def _copy_to_host(value: Any) -> Array:
    if value.device_name() != "cpu" and value.element_type() == BFLOAT16:
        raise EngineError(
            f"a bfloat16 tensor of shape {value.shape()} in {value.device_name()} memory cannot be "
            "read: ONNX Runtime converts no such values to numpy. Bind its output to the CPU."
        )
    try:
        return array_from_value(value)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise EngineError(
            f"a tensor of shape {value.shape()} cannot be copied from {value.device_name()} memory "
            f"({error})"
        ) from error
