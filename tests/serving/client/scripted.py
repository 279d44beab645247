"""A gRPC server that speaks Triton's protocol and does as it is told, for faults on cue."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import grpc
from tritonclient.grpc import service_pb2

from iblip.engines.language_model.types import Answer, Timing
from iblip.export.artifact.manifest import Preprocessing
from iblip.serving.wire.answers import finish_from_answer
from iblip.serving.wire.contract import Limits, ServedBuild, ServerContract

CONTRACT = ServerContract(
    preprocessing=Preprocessing(height=8, width=8, resample="BICUBIC"),
    limits=Limits(
        max_instruction=None,
        images=4,
        max_length=100,
        num_query_tokens=4,
        default_max_new_tokens=8,
        slots=4,
        queue=8,
        max_prompt_bytes=1000,
        max_option_bytes=1000,
        max_logprobs=100,
    ),
    build=ServedBuild(name="x", family="blip2", language_model="opt", precision={}, created=""),
)


def fail(code, text, **metadata):
    """Ends the call with a status."""

    def act(context):
        context.set_trailing_metadata(tuple((k.replace("_", "-"), v) for k, v in metadata.items()))
        context.abort(code, text)
        yield

    return act


def say(*pieces, error="", cached=None):
    """Sends pieces of text, and then an error, or the end of the answer.

    `cached` of the prompt's positions are from the prefix cache.
    """

    def act(context):
        for piece in pieces:
            yield response(piece)
        yield response(error=error) if error else response("", finish("".join(pieces), cached))

    return act


def hang(context):
    """Says nothing until the caller has gone, which it may have already."""
    gone = threading.Event()
    if context.add_callback(gone.set):
        gone.wait(60)
    yield from ()


def break_off(context):
    """Ends the connection's stream without an answer."""
    yield from ()


FULL = fail(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
REFUSED = say(error="QueueFullError: 8 requests wait; try again later")
LOST = fail(grpc.StatusCode.UNAVAILABLE, "Socket closed")
STOPPING = fail(
    grpc.StatusCode.UNAVAILABLE,
    "Server is stopping, scheduler for model has stopped accepting new inference requests",
)


def finish(text, cached=None):
    return finish_from_answer(
        Answer(
            text=text,
            token_ids=(1,),
            finish_reason="eos",
            prompt_tokens=1,
            completion_tokens=1,
            seed=None,
            timing=Timing(vision_s=0, queue_s=0, prefill_s=0, decode_s=0),
            cached_prompt_tokens=cached,
        )
    )


def response(text="", finish="", error=""):
    message = service_pb2.ModelStreamInferResponse(error_message=error)
    if not error:
        for name, value in {"text": text, "finish": finish}.items():
            data = value.encode()
            message.infer_response.outputs.add(name=name, datatype="BYTES", shape=[1])
            message.infer_response.raw_output_contents.append(
                len(data).to_bytes(4, "little") + data
            )
    return message


class Server(grpc.GenericRpcHandler):
    """A context manager. Questions are answered as in `script`, one after another, then with "yes".

    Attributes:
        requests: what has been asked.
        ready: what it says of its model; an iterator of booleans, the last of which stays.
    """

    def __init__(self, script=(), ready=(True,), port=0):
        self.script, self.ready = deque(script), deque(ready)
        self.requests = []
        self.metadata = []
        self._port = port
        self._lock = threading.Lock()

    def __enter__(self):
        self._server = grpc.server(ThreadPoolExecutor(40), handlers=[self])
        self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        self._server.start()
        return self

    def __exit__(self, *_):
        self._server.stop(None).wait()

    @property
    def url(self):
        return f"127.0.0.1:{self._port}"

    def service(self, details):
        return getattr(self, details.method.rpartition("/")[2])()

    def ModelConfig(self):  # noqa: N802 (gRPC's name)
        def answer(request, context):
            message = service_pb2.ModelConfigResponse()
            for name, value in CONTRACT.to_parameters().items():
                message.config.parameters[name].string_value = value
            return message

        return grpc.unary_unary_rpc_method_handler(
            answer,
            service_pb2.ModelConfigRequest.FromString,
            service_pb2.ModelConfigResponse.SerializeToString,
        )

    def ModelReady(self):  # noqa: N802
        def answer(request, context):
            ready = self.ready.popleft() if len(self.ready) > 1 else self.ready[0]
            return service_pb2.ModelReadyResponse(ready=ready)

        return grpc.unary_unary_rpc_method_handler(
            answer,
            service_pb2.ModelReadyRequest.FromString,
            service_pb2.ModelReadyResponse.SerializeToString,
        )

    def ModelStreamInfer(self):  # noqa: N802
        def answer(requests, context):
            request = next(requests)
            with self._lock:
                self.requests.append(request)
                act = self.script.popleft() if self.script else say("yes")
            yield from act(context)

        return grpc.stream_stream_rpc_method_handler(
            answer,
            service_pb2.ModelInferRequest.FromString,
            service_pb2.ModelStreamInferResponse.SerializeToString,
        )
