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
from iblip.serving.steps.feeds import FeedRules
from iblip.serving.steps.heartbeat import start_heartbeat
from iblip.serving.wire.errors import status_from_error, text_from_error


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
        self.largest = step.manifest.limits.max_batch
        self.rules = FeedRules.from_manifest(step.manifest, component, row_axis=step.row_axis)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Runs the requests that the dynamic batcher joined as one batch, but for faulty ones.

        If the GPU can no longer be used, they get that error, and the process ends.
        """
        results = [self._read(request) for request in requests]
        sound = [index for index, feed in enumerate(results) if not isinstance(feed, Exception)]
        outcomes = run_joined(
            [results[index] for index in sound], self.runner.infer, largest=self.largest
        )
        for index, outcome in zip(sound, outcomes, strict=True):
            results[index] = outcome
            if isinstance(outcome, Exception):
                end_if_fatal(outcome)
        return [_response(result) for result in results]

    def _read(self, request: Any) -> Any:
        """A request's tensors, or what is wrong with them."""
        try:
            return self.rules.checked({t.name(): t.as_numpy() for t in request.inputs()})
        except Exception as fault:  # it belongs to this request, not to its batch
            return fault

    def finalize(self) -> None:
        """Frees the engine."""
        self.runner.__exit__(None, None, None)


def _response(result: Tensors | Exception) -> Any:
    """One request's outputs, or its error, as Triton's response."""
    if isinstance(result, Exception):
        code = getattr(pb_utils.TritonError, status_from_error(result))
        error = pb_utils.TritonError(text_from_error(result), code)
        return pb_utils.InferenceResponse(output_tensors=[], error=error)
    tensors = [pb_utils.Tensor(name, array) for name, array in result.items()]
    return pb_utils.InferenceResponse(output_tensors=tensors)
