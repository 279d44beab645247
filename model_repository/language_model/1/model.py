"""Triton's Python model of the language model: requests to the engine, its events to responses."""

import json
import time

import numpy as np
import triton_python_backend_utils as pb_utils

from iblip.engines.language_model.opening import open_engine
from iblip.engines.language_model.types import GenerationRequest
from iblip.export.errors import InputError
from iblip.serving.steps.answering import Answering
from iblip.serving.steps.arguments import StepArguments
from iblip.serving.steps.heartbeat import start_heartbeat
from iblip.serving.steps.metrics import EngineMetrics, MetricsThread
from iblip.serving.steps.prompts import check_fault, prompt_from_tensor, seconds_since
from iblip.serving.wire import (
    ARRIVED,
    CANCEL,
    FAULT,
    FINISH,
    PROMPT,
    TEXT,
    VISUAL_PROMPT,
    finish_from_answer,
    options_from_parameters,
    priority_from_parameters,
    seconds_from_timeout,
    status_from_error,
    stream_from_parameters,
    text_from_error,
)


class TritonPythonModel:
    """Decoupled: `execute` queues, the answers follow as the engine writes them."""

    def initialize(self, args):
        """Loads the engine."""
        start_heartbeat()
        step = StepArguments.from_triton(args)
        step.check_alone()
        engine = open_engine(
            step.directory,
            step.manifest,
            threads=step.threads,
            device=step.device,
            limits=step.limits,
        )
        self.answering = Answering(engine)
        metrics = EngineMetrics(make_family, {"model": args["model_name"]})
        self.metrics = MetricsThread(metrics, engine.status)

    def execute(self, requests):
        """Queues the requests in their order."""
        for request in requests:
            reply = TritonReply(request.get_response_sender())
            try:
                parameters = json.loads(request.parameters() or "{}")
                if CANCEL in parameters:
                    reply.cancelled(self.answering.cancel(str(parameters[CANCEL])))
                    continue
                reply.stream = stream_from_parameters(parameters)
                asked = generation_request(request, parameters)
            except Exception as fault:  # it belongs to this request, not to the model's process
                reply.fail(fault)
            else:
                self.answering.answer(asked, reply, request.request_id())

    def finalize(self):
        """Ends what is running and frees the engine."""
        self.metrics.close()
        self.answering.close()


def generation_request(request, parameters):
    """Triton's request in the engine's words."""
    check_fault(optional_tensor(request, FAULT))
    prompt = tensor(request, PROMPT)
    visual_prompt = tensor(request, VISUAL_PROMPT)
    seconds = seconds_from_timeout(request.timeout())
    return GenerationRequest(
        prompt=prompt_from_tensor(prompt),
        visual_prompt=visual_prompt,
        options=options_from_parameters(parameters),
        deadline=None if seconds is None else time.monotonic() + seconds,
        vision_s=seconds_since(optional_tensor(request, ARRIVED)),
        priority=priority_from_parameters(parameters),
    )


def tensor(request, name):
    """An input that is optional in the config only so that a cancellation needs none."""
    found = optional_tensor(request, name)
    if found is None:
        raise InputError(f"the input {name!r} is missing")
    return found


def optional_tensor(request, name):
    """An input, or nothing."""
    found = pb_utils.get_input_tensor_by_name(request, name)
    return None if found is None else found.as_numpy()


def make_family(name, text, kind):
    """A family of Triton's custom metrics; what makes one of its series."""
    kinds = {"counter": pb_utils.MetricFamily.COUNTER, "gauge": pb_utils.MetricFamily.GAUGE}
    family = pb_utils.MetricFamily(name=name, description=text, kind=kinds[kind])
    return lambda labels: family.Metric(labels=labels)


class TritonReply:
    """Sends one request's responses: text as it comes, or all of it at the end.

    Triton 2.51 loses an error that follows text where a Python model is the caller; so that one
    asks for a single response.
    """

    def __init__(self, sender):
        self.sender = sender
        self.stream = True
        self.unsent = ""

    def delta(self, text):
        """Text, with an empty `finish`."""
        if self.stream:
            self.sender.send(response(text, ""))
        else:
            self.unsent += text

    def finish(self, answer):
        """The finish, with Triton's own final flag on the same response."""
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        self.sender.send(response(self.unsent, finish_from_answer(answer)), flags=final)

    def cancelled(self, count):
        """The end of a cancellation: how many running requests it met."""
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        self.sender.send(response("", json.dumps({"cancelled": count})), flags=final)

    def fail(self, error):
        """The error, final."""
        code = getattr(pb_utils.TritonError, status_from_error(error))
        failed = pb_utils.InferenceResponse(
            output_tensors=[], error=pb_utils.TritonError(text_from_error(error), code)
        )
        self.sender.send(failed, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def is_cancelled(self):
        """Whether the caller has gone."""
        return self.sender.is_cancelled()


def response(text, finish):
    """The two output tensors, `[1]` each."""
    tensors = {TEXT: text, FINISH: finish}
    return pb_utils.InferenceResponse(
        output_tensors=[
            pb_utils.Tensor(name, np.array([value.encode()], dtype=np.object_))
            for name, value in tensors.items()
        ]
    )
