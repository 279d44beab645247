"""Triton's Python model of the one-answer mode: calls the ensemble and joins its responses."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils

from serving.wire import ENSEMBLE, FINISH, PIXELS, PROMPT, TEXT


class TritonPythonModel:
    """One whole answer a request."""

    def execute(self, requests):
        """One response a request, in their order."""
        return [answer(request) for request in requests]


def answer(request):
    """Asks the ensemble as the caller asked, and waits for the end."""
    call = pb_utils.InferenceRequest(
        model_name=ENSEMBLE,
        requested_output_names=[TEXT, FINISH],
        inputs=[pb_utils.get_input_tensor_by_name(request, name) for name in (PIXELS, PROMPT)],
        parameters=json.loads(request.parameters() or "{}"),
        timeout=request.timeout(),
    )
    texts = []  # list[bytes]
    finish = b""
    for part in call.exec(decoupled=True):
        if part.has_error():
            return pb_utils.InferenceResponse(output_tensors=[], error=part.error())
        if part.output_tensors():  # the last response may be empty but for its final flag
            texts.append(value(part, TEXT))
            finish = value(part, FINISH) or finish
    tensors = {TEXT: b"".join(texts), FINISH: finish}
    return pb_utils.InferenceResponse(
        output_tensors=[
            pb_utils.Tensor(name, np.array([data], dtype=np.object_))
            for name, data in tensors.items()
        ]
    )


def value(response, name):
    """The one element of a BYTES output."""
    return pb_utils.get_output_tensor_by_name(response, name).as_numpy().reshape(-1)[0]
