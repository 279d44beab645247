"""Triton's Python model of the one-answer mode: asks `instructblip` for a single response."""

import json
import secrets
import threading

import triton_python_backend_utils as pb_utils

from iblip.export.errors import QueueFullError
from iblip.serving.steps.heartbeat import start_heartbeat
from iblip.serving.wire import (
    CALLS,
    CANCEL,
    CANCEL_KEY,
    FINISH,
    MODEL,
    PACKED,
    PIXELS,
    PROMPT,
    STREAM,
    TEXT,
    error_from_text,
    status_from_error,
    text_from_error,
)

MOST = CALLS - 32
"""Requests under way at once; the rest of the calls are for cancelling."""

FULL = text_from_error(
    QueueFullError(f"{MOST} requests are under way, as many as this model takes. Try again later.")
)

POLL_S = 0.1
"""Seconds between two checks whether callers are still there."""


class TritonPythonModel:
    """One whole answer a request; each waits for its own in a thread."""

    def initialize(self, args):
        """Begins to look after callers that go."""
        start_heartbeat()
        self.waiting, self.lock = {}, threading.Lock()  # cancel keys by sender
        self.closed = threading.Event()
        self.watcher = threading.Thread(target=self.watch, name="watch-callers", daemon=True)
        self.watcher.start()

    def execute(self, requests):
        """Begins to answer the requests; the responses follow."""
        for request in requests:
            sender = request.get_response_sender()
            key = json.loads(request.parameters() or "{}").get(CANCEL_KEY) or secrets.token_hex(16)
            with self.lock:
                is_full = len(self.waiting) >= MOST
                if not is_full:
                    self.waiting[sender] = key
            if is_full:
                send(sender, pb_utils.InferenceResponse([], triton_error(FULL)))
                continue
            call = call_for(request, key)
            threading.Thread(target=self.answer, args=(call, sender), daemon=True).start()

    def finalize(self):
        """Triton ends a model when it has no request any more."""
        self.closed.set()
        self.watcher.join()

    def answer(self, call, sender):
        """Waits for the answer, and sends it."""
        response = answer(call)
        with self.lock:
            del self.waiting[sender]
        send(sender, response)

    def watch(self):
        """Cancels the answers that nobody waits for."""
        while not self.closed.wait(POLL_S):
            with self.lock:  # a sender that has sent its response may not be asked
                gone = [key for sender, key in self.waiting.items() if sender.is_cancelled()]
            for key in gone:
                cancel(key)


def send(sender, response):
    """Sends the one response of a request."""
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def call_for(request, key):
    """What `instructblip` is asked: as the caller asked."""
    return pb_utils.InferenceRequest(
        model_name=MODEL,
        requested_output_names=[TEXT, FINISH],
        inputs=[pb_utils.get_input_tensor_by_name(request, name) for name in (PIXELS, PROMPT)],
        parameters={PACKED: request.parameters() or "{}", STREAM: False, CANCEL_KEY: key},
        timeout=request.timeout(),
    )


def answer(call):
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


def triton_error(text):
    """The model's error under the code of its kind, which Triton loses on the way."""
    code = status_from_error(error_from_text(text))
    return pb_utils.TritonError(text, getattr(pb_utils.TritonError, code))
