"""Runs a loaded plan: its memory, its execution contexts and its captured graphs."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from iblip.engines.cuda.device import Device
from iblip.engines.tensorrt.buffers import Buffers
from iblip.engines.tensorrt.captures import CapturedRun, Captures, Key
from iblip.engines.tensorrt.collection import no_collection
from iblip.engines.tensorrt.contexts import Context
from iblip.engines.tensorrt.loading import LoadedPlan
from iblip.engines.tensorrt.profile import Shape
from iblip.engines.tensorrt.ranges import Shapes, choose_range, ranges_of_engine
from iblip.engines.types import Feed
from iblip.export.artifact.contract import Contract, TensorSpec
from iblip.export.errors import EngineError

logger = logging.getLogger(__name__)

CAPTURED = ("tensorrt",)
"""Kinds of library whose runs are captured here; TensorRT-RTX captures graphs by itself."""


class Execution:
    """Runs a plan, one run at a time. Not thread-safe.

    Inputs are copied into pinned memory and from there to the GPU, and outputs back the same way,
    all on one stream. A shape that recurs is captured as a CUDA graph, including the copies.

    Args:
        plan: the plan to run.
        contract: the graph's inputs and outputs.
        device: the GPU, which is the calling thread's.
        graphs: how many shapes are kept as CUDA graphs; 0 captures none.

    Raises:
        EngineError, CudaError: a context cannot be made, or there is too little memory.
    """

    @no_collection()
    def __init__(
        self, plan: LoadedPlan, contract: Contract, device: Device, *, graphs: int
    ) -> None:
        self._plan, self._contract, self._device = plan, contract, device
        self._ranges = ranges_of_engine(plan.engine, contract)
        with ExitStack() as stack:
            self._stream = device.open_stream()
            stack.callback(device.close_stream, self._stream)
            self._contexts = {
                profile.index: Context(plan, contract, profile.index, self._stream)
                for profile in self._ranges
            }
            self._buffers = Buffers(device, self._find_sizes(), plan.engine.device_memory_size_v2)
            stack.callback(self._buffers.close)
            for context in self._contexts.values():
                context.attach(self._buffers)
            limit = graphs if plan.library.kind in CAPTURED else 0
            self._captures: Captures[Context] = Captures(limit, device.forget)
            stack.callback(self._captures.stop)
            self._stack = stack.pop_all()

    @property
    def captured(self) -> int:
        """How many shapes are kept as CUDA graphs."""
        return len(self._captures)

    @no_collection()
    def run(self, feed: Feed) -> dict[str, Any]:
        """Every output by name, for a feed that fits the contract.

        Raises:
            InputError: no profile of the plan holds the feed's shapes.
            EngineError, CudaError: the library or the GPU fails.
        """
        shapes = {spec.name: feed[spec.name].shape for spec in self._contract.inputs}
        profile = choose_range(self._ranges, shapes, self._contract)
        key = profile.index, tuple(shapes.values())
        for spec in self._contract.inputs:
            self._buffers.host(spec, shapes[spec.name])[...] = feed[spec.name]
        captured = self._captures.get(key)
        if captured is None:
            outputs: Mapping[str, Shape] = self._contexts[profile.index].set_shapes(shapes)
            self._queue(self._contexts[profile.index], shapes, outputs)
        else:
            outputs = captured.outputs
            self._device.launch(captured.graph, self._stream)
        self._device.synchronize(self._stream)
        answer = {
            spec.name: self._buffers.host(spec, outputs[spec.name]).copy()
            for spec in self._contract.outputs
        }
        if captured is None and self._captures.should_capture(key):
            self._capture(key, shapes)
        return answer

    def close(self) -> None:
        """Frees graphs, contexts, memory and stream."""
        self._contexts.clear()
        self._stack.close()

    def _queue(self, context: Context, shapes: Shapes, outputs: Shapes) -> None:
        addresses = self._buffers.addresses
        for spec in self._contract.inputs:
            host = self._buffers.host(spec, shapes[spec.name])
            self._device.upload(addresses[spec.name], host, self._stream)
        context.enqueue()
        for spec in self._contract.outputs:
            host = self._buffers.host(spec, outputs[spec.name])
            self._device.download(host, addresses[spec.name], self._stream)

    def _capture(self, key: Key, shapes: Shapes) -> None:
        """Captures a run of these shapes. If that fails, runs go on without captured graphs."""
        try:
            context = Context(self._plan, self._contract, key[0], self._stream)
            context.attach(self._buffers)
            outputs = context.set_shapes(shapes)
            context.enqueue()  # setup that a new shape needs must not be part of the graph
            self._device.synchronize(self._stream)
            graph = self._device.capture(
                self._stream, lambda: self._queue(context, shapes, outputs)
            )
        except EngineError as error:
            logger.warning("runs are no longer captured as CUDA graphs: %s", error)
            self._captures.stop()
            return
        self._captures.add(key, CapturedRun(graph=graph, context=context, outputs=outputs))

    def _find_sizes(self) -> dict[str, int]:
        """Size in bytes of every tensor, at the largest shapes of all profiles."""
        sizes: dict[str, int] = {}
        for profile in self._ranges:
            outputs = self._contexts[profile.index].set_shapes(profile.max)
            for spec in (*self._contract.inputs, *self._contract.outputs):
                shape = profile.max.get(spec.name) or outputs[spec.name]
                sizes[spec.name] = max(sizes.get(spec.name, 0), _count_bytes(spec, shape))
        return sizes


def _count_bytes(spec: TensorSpec, shape: Shape) -> int:
    return math.prod(shape) * spec.numpy_dtype.itemsize
