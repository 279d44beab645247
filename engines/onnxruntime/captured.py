"""Runs of a session as CUDA graphs: one launch a run, in buffers that stay where they are.

ONNX Runtime captures a graph when inputs of a shape come first, and replays it from then on. It
belongs to the thread that captured it, so all runs of a session are in one thread here.

Batches are filled up with zeros to one of `BATCHES`, so that few shapes are captured; so are
instructions, whose mask leaves out what they are filled up with. Attention with a mask is a fused
kernel for such lengths only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from iblip.export.artifact.contract import Contract, TensorSpec

BATCHES = (1, 2, 4, 8)
"""Batches that are captured. Larger ones have work enough for a GPU without it."""

MULTIPLES: Mapping[str, int] = {"instruction": 8}
"""Axes that are filled up, and to a multiple of what."""

MOST = 32
"""Largest number of shapes that are captured; others run without a graph."""

NO_GRAPH = -1
"""ONNX Runtime's number for a run that is no CUDA graph, of a session that has some."""

Array = npt.NDArray[Any]

Result = TypeVar("Result")


def sizes_of_run(contract: Contract, feed: Mapping[str, Array]) -> dict[str, int] | None:
    """Returns the size of each named axis in the run that stands in for one of these inputs.

    `None` if it is not to be captured: its batch is larger than all of `BATCHES`, or an axis has no
    such size.
    """
    sizes: dict[str, int] = {}
    for spec in contract.inputs:
        for axis, size in zip(spec.axes, feed[spec.name].shape, strict=True):
            if axis == "batch":
                sizes[axis] = next((batch for batch in BATCHES if batch >= size), 0)
            elif isinstance(axis, str):
                sizes[axis] = _filled_size(axis, size) if axis in MULTIPLES else 0
    return sizes if all(sizes.values()) else None


def fill_up(contract: Contract, feed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the inputs with the axes of `MULTIPLES` filled up, for a run without a graph."""
    filled = dict(feed)
    for spec in contract.inputs:
        if not MULTIPLES.keys().isdisjoint(axis for axis in spec.axes if isinstance(axis, str)):
            array = np.asarray(feed[spec.name])
            axes = zip(spec.axes, array.shape, strict=True)
            sizes = {axis: _filled_size(axis, n) for axis, n in axes if isinstance(axis, str)}
            filled[spec.name] = _filled(spec, array, sizes)
    return filled


def _filled_size(axis: str, size: int) -> int:
    step = MULTIPLES.get(axis, 1)
    return -(-size // step) * step


@dataclass(frozen=True, kw_only=True)
class Buffers:
    """A shape's inputs and outputs on the GPU, bound to a session.

    Attributes:
        binding: ONNX Runtime's.
        inputs, outputs: `OrtValue`s by name.
        options: of the run, with the number of its CUDA graph.
    """

    binding: Any
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    options: Any


class CapturedRuns:
    """Runs a session of fixed shapes as CUDA graphs. Thread-safe.

    Args:
        session: an `onnxruntime.InferenceSession` on the CUDA provider, with CUDA graphs enabled.
        contract: the graph's inputs and outputs.
        device: the GPU's number, from 0.
    """

    def __init__(self, session: Any, contract: Contract, device: int) -> None:
        self._session, self._contract, self._device = session, contract, device
        self._buffers: dict[tuple[tuple[str, int], ...], Buffers] = {}
        self._thread = ThreadPoolExecutor(1, "cuda-graphs")

    def close(self) -> None:
        """Frees the buffers, and waits for a run to end."""
        self._thread.shutdown()
        self._buffers.clear()

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array] | None:
        """Every output by name; `None` if inputs of this shape are not captured.

        Args:
            feed: arrays of the host that fit the contract.
        """
        return self.call(self._run, feed)

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Calls a function in the thread of the session's runs, and returns what it returns."""
        return self._thread.submit(function, *arguments).result()

    def _run(self, feed: Mapping[str, Array]) -> dict[str, Array] | None:
        sizes = sizes_of_run(self._contract, feed)
        if sizes is None:
            return None
        key = tuple(sorted(sizes.items()))
        if key not in self._buffers:
            if len(self._buffers) == MOST:
                return None
            self._buffers[key] = self._bind(sizes, len(self._buffers) + 1)
        buffers = self._buffers[key]
        for spec in self._contract.inputs:
            buffers.inputs[spec.name].update_inplace(_filled(spec, feed[spec.name], sizes))
        self._session.run_with_iobinding(buffers.binding, buffers.options)
        rows = next(iter(feed.values())).shape[0]
        return {name: value.numpy()[:rows] for name, value in buffers.outputs.items()}

    def _bind(self, sizes: Mapping[str, int], number: int) -> Buffers:
        import onnxruntime

        def buffer(spec: TensorSpec) -> Any:
            shape = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.axes]
            return onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                shape, spec.numpy_dtype, "cuda", self._device
            )

        inputs = {spec.name: buffer(spec) for spec in self._contract.inputs}
        outputs = {spec.name: buffer(spec) for spec in self._contract.outputs}
        binding, options = self._session.io_binding(), run_options(number)
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        return Buffers(binding=binding, inputs=inputs, outputs=outputs, options=options)


def run_options(number: int = NO_GRAPH) -> Any:
    """Returns the options of a run that is the CUDA graph of this number, or of one without."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))
    return options


def _filled(spec: TensorSpec, array: Array, sizes: Mapping[str, int]) -> Array:
    """Returns the array with zeros behind it on every named axis, as large as the run."""
    shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.axes)
    if array.shape == shape:
        return np.ascontiguousarray(array)
    filled = np.zeros(shape, array.dtype)
    filled[tuple(slice(size) for size in array.shape)] = array
    return filled
