"""Triton's Python model of the one-answer mode: asks the ensemble for a single response."""

import triton_python_backend_utils as pb_utils

from iblip.serving.steps.heartbeat import start_heartbeat
from iblip.serving.wire import (
    ENSEMBLE,
    FINISH,
    PACKED,
    PIXELS,
    PROMPT,
    STREAM,
    TEXT,
    error_from_text,
    status_from_error,
)


class TritonPythonModel:
    """One whole answer a request."""

    def initialize(self, args):
        """Shows the supervisor that it is alive."""
        start_heartbeat()

    def execute(self, requests):
        """One response a request, in their order."""
        return [answer(request) for request in requests]


def answer(request):
    """Asks the ensemble as the caller asked, and waits for the end."""
    call = pb_utils.InferenceRequest(
        model_name=ENSEMBLE,
        requested_output_names=[TEXT, FINISH],
        inputs=[pb_utils.get_input_tensor_by_name(request, name) for name in (PIXELS, PROMPT)],
        parameters={PACKED: request.parameters() or "{}", STREAM: False},
        timeout=request.timeout(),
    )
    error = None
    tensors = []
    for part in call.exec(decoupled=True):  # to its end: Triton waits for ever where it is not
        if part.has_error():
            error = triton_error(part.error().message())
        else:  # an empty one carries the final flag alone
            tensors = part.output_tensors() or tensors
    return pb_utils.InferenceResponse(output_tensors=tensors, error=error)


def triton_error(text):
    """The ensemble's error under the code of its kind, which Triton loses on the way."""
    code = status_from_error(error_from_text(text))
    return pb_utils.TritonError(text, getattr(pb_utils.TritonError, code))
