"""One graph on OpenVINO."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Set
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from iblip.engines.onnxruntime.binding import DeviceArray
from iblip.engines.onnxruntime.session import suitable_threads
from iblip.export.artifact.contract import Contract
from iblip.export.errors import EngineError
from iblip.export.system.installing import install_command

Array = npt.NDArray[Any]


class OpenVinoGraph:
    """One ONNX graph on OpenVINO's CPU plugin; attention over slots stays with ONNX Runtime.

    Args:
        path: of the `.onnx` file.
        contract: its inputs and outputs.
        threads: for one operator; `None` takes what suits the graph and the machine.
        block_size: weights that share a scale; as many activations are rounded to 8 bits together,
            as ONNX Runtime does. `None` if weights are not in blocks.
        bfloat16: whether floats are multiplied in bfloat16 where the processor can.

    Raises:
        EngineError: OpenVINO is not installed, or cannot compile the graph.
    """

    def __init__(
        self,
        path: Path,
        contract: Contract,
        *,
        threads: int | None = None,
        block_size: int | None = None,
        bfloat16: bool = False,
    ) -> None:
        try:
            from iblip.engines.openvino.attention import AttentionRunner
        except ImportError as error:
            raise EngineError(
                f"OpenVINO cannot be loaded ({error}). Run `{install_command('openvino')}`."
            ) from error
        if not path.is_file():
            raise EngineError(f"there is no graph {path}. The build is incomplete: build it again.")
        self.contract, self._path = contract, path
        threads = threads or suitable_threads(path)
        self._attention = AttentionRunner(threads)
        weakref.finalize(self, self._attention.close)
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            # Threads take work from each other: of even shares, int8 and bf16 await the slowest.
            "TBB_PARTITIONER": "AUTO",
            "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 and multiplies_bfloat16() else "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": block_size or 0,
        }
        try:
            model = _without_slots(_read(path, self._attention), self._attention.slots)
            self._inputs = {name for port in model.inputs for name in port.get_names()}
            computed = {name for port in model.outputs for name in port.get_names()}
            self._outputs = [spec.name for spec in contract.outputs if spec.name in computed]
            self._request = _core().compile_model(model, "CPU", settings).create_infer_request()
            self._prepare_weights()
        except RuntimeError as error:
            message = f"OpenVINO cannot load {path} ({error}). Build it again."
            raise EngineError(message) from error

    def _prepare_weights(self) -> None:
        """Runs once: OpenVINO's matmuls copy weights at their first run, in their kernels' order.

        Otherwise the first request would wait, and the weights' files stay in memory as well.
        """
        import openvino

        from iblip.engines.openvino.weights import release

        for spec in self.contract.inputs:
            if self.is_input(spec.name):
                shape = [axis if isinstance(axis, int) else 1 for axis in spec.axes]
                zeros = np.zeros(shape, spec.numpy_dtype)
                self._request.set_tensor(spec.name, openvino.Tensor(zeros))
        self._request.infer()
        release(self._path.parent)

    def __call__(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """As `engines.language_model.onnx.graph.Graph.__call__`."""
        import openvino

        inputs = {name: openvino.Tensor(np.ascontiguousarray(a)) for name, a in arrays.items()}
        return {name: array.copy() for name, array in self.run(inputs, {}).items()}

    def binding(self, replayed: int = -1) -> OpenVinoBinding:
        """A new binding, which runs the graph on memory that stays in place."""
        return OpenVinoBinding(self)

    def run(self, inputs: Mapping[str, Any], slots: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the graph once, to its end.

        Args:
            inputs: OpenVINO's tensors, by name.
            slots: what attention alone reads and writes, by name.

        Returns:
            Every output but the slots, in memory that the next run overwrites.

        Raises:
            EngineError: OpenVINO fails.
        """
        self._attention.bound = slots
        try:
            for name, tensor in inputs.items():
                self._request.set_tensor(name, tensor)
            self._request.infer()
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed in {self._path} ({error})") from error
        return {name: self._request.get_tensor(name).data for name in self._outputs}

    def is_input(self, name: str) -> bool:
        """Whether OpenVINO reads an input; if not, attention alone does."""
        return name in self._inputs


class OpenVinoBinding:
    """Arrays bound to a graph's inputs and outputs, as `engines.onnxruntime.binding.Binding` has.

    Args:
        graph: what it runs.
    """

    def __init__(self, graph: OpenVinoGraph) -> None:
        self._graph = graph
        self._inputs: dict[str, Any] = {}
        self._slots: dict[str, Array] = {}
        self._outputs: dict[str, Array] = {}

    def input(self, name: str, array: Array | DeviceArray) -> None:
        """Binds an input, replacing what was bound to it before."""
        import openvino

        assert isinstance(array, np.ndarray)
        if self._graph.is_input(name):
            self._inputs[name] = openvino.Tensor(array, shared_memory=True)
        else:
            self._slots[name] = array

    def output(self, name: str, array: Array | DeviceArray) -> None:
        """Binds an output to an array of its shape. Slots are written where they are read."""
        assert isinstance(array, np.ndarray)
        self._outputs[name] = array

    def run(self) -> None:
        """Runs the graph once, to its end. Raises `EngineError` where OpenVINO fails."""
        for name, array in self._graph.run(self._inputs, self._slots).items():
            self._outputs[name][...] = array


_reading: list[Any] = []
"""What runs the attention of the graph that is being read."""

_lock = Lock()


@cache
def _core() -> Any:
    """OpenVINO's `Core`, the only one of this process.

    Each moves the stack on which the process handles signals, and moves it back when it is freed.
    Freed in another order than they were made, they would leave it in memory that is gone, and the
    next Ctrl-C would be a segmentation fault (OpenVINO 2026.4).
    """
    import openvino
    from openvino.frontend.onnx import ConversionExtension

    from iblip.engines.openvino import attention, weights

    core = openvino.Core()
    for name, domain, convert in (
        (attention.NAME, attention.DOMAIN, lambda node: attention.convert(_reading[-1], node)),
        (weights.NAME, weights.DOMAIN, lambda node: weights.convert(_reading[-1].weights, node)),
    ):
        core.add_extension(ConversionExtension(name, domain, convert))
    return core


def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 (AVX512_BF16 or AMX), as OpenVINO sees it."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _read(path: Path, runner: Any) -> Any:
    """Reads a graph whose attention `runner` runs."""
    with _lock:
        _reading.append(runner)
        try:
            return _core().read_model(path)
        finally:
            _reading.pop()


def _without_slots(model: Any, slots: Set[str]) -> Any:
    """The model without the inputs `slots`, and without outputs that attention writes."""
    import openvino

    parameters = [one for one in model.get_parameters() if not slots & one.output(0).get_names()]
    results = [
        one
        for one in model.get_results()
        if one.input_value(0).get_node().get_type_name() != "Constant"
    ]
    return openvino.Model(results, parameters)
