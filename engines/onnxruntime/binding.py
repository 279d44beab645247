"""Runs a session on memory that stays where it is: inputs read and outputs written in place."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy.typing as npt

from export.errors import EngineError
from export.onnxruntime_values import BFLOAT16

Array = npt.NDArray[Any]


class Binding:
    """Arrays bound to a session's inputs and outputs. On the CPU.

    What is bound stays bound: to run again on other values, write them into the same arrays. An
    array may be bound as an input and as an output, where the graph's kernels can work in place.

    Args:
        session: an `onnxruntime.InferenceSession`.
        title: of the graph, for messages.
    """

    def __init__(self, session: Any, title: str) -> None:
        self._session = session
        self._title = title
        self._binding = session.io_binding()
        self._arrays: dict[str, Array] = {}  # kept alive: ONNX Runtime holds their addresses alone

    def input(self, name: str, array: Array) -> None:
        """Binds an input, in place of what was bound to it before."""
        self._bind(self._binding.bind_input, name, array)

    def output(self, name: str, array: Array) -> None:
        """Binds an output; the array has its shape."""
        self._bind(self._binding.bind_output, name, array)

    def run(self) -> None:
        """Runs the session once. Raises `EngineError` where ONNX Runtime fails."""
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise EngineError(f"ONNX Runtime failed in {self._title} ({error})") from error

    def _bind(self, bind: Any, name: str, array: Array) -> None:
        assert array.flags.c_contiguous, name
        kind = BFLOAT16 if array.dtype == ml_dtypes.bfloat16 else array.dtype.type
        bind(name, "cpu", 0, kind, array.shape, array.ctypes.data)
        self._arrays[name] = array
