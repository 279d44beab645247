"""Triton's Python model of the one-answer mode: asks `instructblip` for a single response."""

import json
import os
from functools import partial

import numpy as np
import triton_python_backend_utils as pb_utils

from iblip.export.errors import InputError
from iblip.serving.steps.forwarding import Forwarding
from iblip.serving.steps.heartbeat import start_heartbeat
from iblip.serving.steps.policy import CALL_KEY_VARIABLE
from iblip.serving.wire.errors import error_from_text, status_from_error, text_from_error
from iblip.serving.wire.names import (
    CALL_KEY,
    CALLS,
    CANCEL,
    CANCEL_KEY,
    FINISH,
    MODEL,
    PACKED,
    PROMPT,
    STREAM,
    TEXT,
)
from iblip.serving.wire.parameters import (
    cancelled_key,
    key_from_parameters,
    parameters_from_json,
    stream_from_parameters,
)


class TritonPythonModel:
    """One whole answer a request; each waits for its own in a thread."""

    def initialize(self, args):
        """Begins to look after callers that go."""
        start_heartbeat()
        # Some of the calls that Triton allows are for cancelling.
        self.forwarding = Forwarding(ask, cancel, failure, most=CALLS - 32)

    def execute(self, requests):
        """Begins to answer the requests; the responses follow."""
        for request in requests:
            sender = Sender(request.get_response_sender())
            try:
                text = request.parameters() or "{}"
                parameters = parameters_from_json(text)
                if not request.inputs() and CANCEL in parameters:
                    count = self.forwarding.cancel(cancelled_key(parameters))
                    sender.send(response("", json.dumps({"cancelled": count})))
                    continue
                stream_from_parameters(parameters)  # refuses what is neither true nor false
                caller_key = key_from_parameters(parameters)
                inputs = request.inputs()
                if PROMPT not in [one.name() for one in inputs]:
                    raise InputError(f"the input {PROMPT!r} is missing")
            except Exception as fault:  # it belongs to this request, not to the model's process
                sender.send(failure(fault))
                continue
            make_call = partial(call_for, inputs, text, request.timeout())
            self.forwarding.forward(sender, make_call, caller_key)

    def finalize(self):
        """Stops watching callers."""
        self.forwarding.close()


class Sender:
    """Sends the one response of a request."""

    def __init__(self, sender):
        self.sender = sender

    def send(self, one):
        """The response, final."""
        self.sender.send(one, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def is_cancelled(self):
        """Whether the caller has gone."""
        return self.sender.is_cancelled()


def call_for(inputs, parameters, timeout, key):
    """What `instructblip` is asked: as the caller asked."""
    own = {STREAM: False, CANCEL_KEY: key, CALL_KEY: os.environ.get(CALL_KEY_VARIABLE, "")}
    return pb_utils.InferenceRequest(
        model_name=MODEL,
        requested_output_names=[TEXT, FINISH],
        inputs=inputs,
        parameters={PACKED: parameters, **own},
        timeout=timeout,
    )


def ask(call):
    """The one response to a call."""
    error, tensors = None, []
    for part in call.exec(decoupled=True):  # to its end: Triton waits for ever where it is not
        if part.has_error():
            error = triton_error(part.error().message())
        else:  # an empty one carries the final flag alone
            tensors = part.output_tensors() or tensors
    return pb_utils.InferenceResponse(output_tensors=tensors, error=error)


def cancel(key):
    """Cancels the answer with that secret."""
    call = pb_utils.InferenceRequest(
        model_name=MODEL, requested_output_names=[FINISH], inputs=[], parameters={CANCEL: key}
    )
    for _ in call.exec(decoupled=True):
        pass


def failure(error):
    """The response for an error of this model's own."""
    return pb_utils.InferenceResponse([], triton_error(text_from_error(error)))


def triton_error(text):
    """The model's error under the code of its kind, which Triton loses on the way."""
    code = status_from_error(error_from_text(text))
    return pb_utils.TritonError(text, getattr(pb_utils.TritonError, code))


def response(text, finish):
    """The two output tensors, `[1]` each."""
    tensors = {TEXT: text, FINISH: finish}
    return pb_utils.InferenceResponse(
        [
            pb_utils.Tensor(name, np.array([value.encode()], dtype=np.object_))
            for name, value in tensors.items()
        ]
    )
