"""Execution contexts: a plan at one of its profiles, on memory that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from iblip.engines.tensorrt.buffers import Buffers
from iblip.engines.tensorrt.loading import LoadedPlan
from iblip.engines.tensorrt.profile import Shape
from iblip.engines.tensorrt.ranges import Shapes
from iblip.export.artifact.contract import Contract
from iblip.export.errors import EngineError


def _make_for_tensorrt(plan: LoadedPlan) -> Any:
    return plan.engine.create_execution_context(_user_managed(plan))


def _make_for_tensorrt_rtx(plan: LoadedPlan) -> Any:
    # It captures its own graphs: the kernels of a shape change while it is still compiling them.
    config = plan.engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(_user_managed(plan))
    config.cuda_graph_strategy = plan.library.module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    if plan.kernels is not None:
        plan.kernels.attach(config)
    return plan.engine.create_execution_context(config)


def _user_managed(plan: LoadedPlan) -> Any:
    return plan.library.module.ExecutionContextAllocationStrategy.USER_MANAGED


MAKERS: Mapping[str, Callable[[LoadedPlan], Any]] = {
    "tensorrt": _make_for_tensorrt,
    "tensorrt-rtx": _make_for_tensorrt_rtx,
}
"""Kind of library to the function that makes a context."""


class Context:
    """An `IExecutionContext` at one profile.

    Args:
        plan: the plan that it runs.
        contract: the graph's inputs and outputs.
        index: of the profile.
        stream: the stream of all its work.

    Raises:
        EngineError: the library cannot create a context, or not at this profile.
    """

    def __init__(self, plan: LoadedPlan, contract: Contract, index: int, stream: int) -> None:
        self._plan, self._contract, self._stream = plan, contract, stream
        self._context = MAKERS[plan.library.kind](plan)
        if self._context is None:
            raise plan.fault("creates no context")
        if not self._context.set_optimization_profile_async(index, stream):
            raise plan.fault(f"rejects profile {index}")

    def attach(self, buffers: Buffers) -> None:
        """Sets the context's scratch memory and the addresses of its tensors."""
        self._context.set_device_memory(*buffers.scratch)
        for name, address in buffers.addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise self._plan.fault(f"rejects the memory for tensor {name!r}")

    def set_shapes(self, shapes: Shapes) -> dict[str, Shape]:
        """Sets the inputs' shapes, and returns the outputs'.

        Raises:
            EngineError: a shape is rejected, or an output's shape depends on values.
        """
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise self._plan.fault(f"rejects {name!r} of shape {list(shape)}")
        outputs = {
            spec.name: tuple(self._context.get_tensor_shape(spec.name))
            for spec in self._contract.outputs
        }
        unknown = [name for name, shape in outputs.items() if min(shape, default=0) < 0]
        if unknown:
            raise EngineError(
                f"the shape of output {', '.join(unknown)} of {self._plan.path} depends on values, "
                "not only on the inputs' shapes; such a plan is not supported here"
            )
        return outputs

    def enqueue(self) -> None:
        """Queues a run. Raises `EngineError` if the library refuses it."""
        if not self._context.execute_async_v3(self._stream):
            raise self._plan.fault("cannot start a run")
