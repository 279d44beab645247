"""Runs a session on bound memory: inputs are read and outputs are written in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from iblip.export.errors import EngineError
from iblip.export.graph.onnxruntime_values import BFLOAT16

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class DeviceArray:
    """A contiguous array in a GPU's memory. Its owner keeps it alive.

    Attributes:
        address: of the first element.
        shape: in elements.
        dtype: numpy's, or ml_dtypes' bfloat16.
        memory: ONNX Runtime's name of the memory: `cuda`.
        device: the GPU's number, from 0.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    memory: str = "cuda"
    device: int = 0


class Binding:
    """Arrays bound to a session's inputs and outputs, of the host or of a GPU.

    What is bound stays bound: to run again on other values, write them into the same arrays. An
    array may be bound as both an input and an output if the graph's kernels can work in place. On a
    GPU, a host's array may be bound only where the graph reads it on the host: elsewhere ONNX
    Runtime would copy it once, as it is bound.

    Args:
        session: an `onnxruntime.InferenceSession`.
        title: of the graph, for messages.
        replayed: of a session that captures CUDA graphs, the number of the one to capture in the
            first run and to replay in the others, or -1 to capture none; `None` for a session that
            captures none. Sessions keep captured graphs by thread.
    """

    def __init__(self, session: Any, title: str, *, replayed: int | None = None) -> None:
        self._session = session
        self._title = title
        self._binding = session.io_binding()
        self._options = None if replayed is None else _options(replayed)
        # Kept alive: ONNX Runtime holds their addresses alone.
        self._inputs: dict[str, Array | DeviceArray] = {}
        self._outputs: dict[str, Array | DeviceArray] = {}

    def input(self, name: str, array: Array | DeviceArray) -> None:
        """Binds an input, replacing what was bound to it before."""
        self._inputs[name] = array
        _bind(self._binding.bind_input, name, array)

    def output(self, name: str, array: Array | DeviceArray) -> None:
        """Binds an output to an array of its shape."""
        self._outputs[name] = array
        _bind(self._binding.bind_output, name, array)

    def run(self) -> None:
        """Runs the session once, to its end. Raises `EngineError` where ONNX Runtime fails."""
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise EngineError(f"ONNX Runtime failed in {self._title} ({error})") from error


def _options(replayed: int) -> Any:
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(replayed))
    return options


def _bind(bind: Any, name: str, array: Array | DeviceArray) -> None:
    kind = BFLOAT16 if array.dtype == ml_dtypes.bfloat16 else array.dtype.type
    if isinstance(array, DeviceArray):
        bind(name, array.memory, array.device, kind, array.shape, array.address)
    else:
        assert array.flags.c_contiguous, name
        bind(name, "cpu", 0, kind, array.shape, array.ctypes.data)
