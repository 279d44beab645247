"""The Triton model of a component that runs one graph: requests to tensors and back.

The only module of this folder that imports Triton's own: it loads in a Python model alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton_python_backend_utils as pb_utils

from iblip.engines.runners import open_runner
from iblip.serving.steps.arguments import StepArguments
from iblip.serving.steps.batches import Tensors, run_joined
from iblip.serving.steps.ending import end_if_fatal
from iblip.serving.steps.heartbeat import start_heartbeat
from iblip.serving.wire import text_from_error


class ComponentModel:
    """Runs the component that the config's parameter `component` names."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Loads the engine."""
        start_heartbeat()
        step = StepArguments.from_triton(args)
        component = step.parameters["component"]
        runner = open_runner(
            step.directory, step.manifest, component, threads=step.threads, device=step.device
        )
        self.runner = runner.__enter__()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Runs the requests that the dynamic batcher joined as one batch.

        If the GPU can no longer be used, they get that error, and the process ends.
        """
        feeds = [
            {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            for request in requests
        ]
        results = run_joined(feeds, self.runner.infer)
        for result in results:
            if isinstance(result, Exception):
                end_if_fatal(result)
        return [_response(result) for result in results]

    def finalize(self) -> None:
        """Frees the engine."""
        self.runner.__exit__(None, None, None)


def _response(result: Tensors | Exception) -> Any:
    """One request's outputs, or its error, as Triton's response."""
    if isinstance(result, Exception):
        error = pb_utils.TritonError(text_from_error(result))
        return pb_utils.InferenceResponse(output_tensors=[], error=error)
    tensors = [pb_utils.Tensor(name, array) for name, array in result.items()]
    return pb_utils.InferenceResponse(output_tensors=tensors)
