"""Triton's Python model that callers ask: requests to questions, the answers to responses."""

import json
import os
from functools import partial

import numpy as np
import triton_python_backend_utils as pb_utils

from iblip.engines.language_model.opening import open_engine
from iblip.export.errors import InputError
from iblip.serving.steps.answering import Answering, CallerLimits
from iblip.serving.steps.arguments import StepArguments
from iblip.serving.steps.encoding import encode_cached, encode_past_failures
from iblip.serving.steps.heartbeat import start_heartbeat
from iblip.serving.steps.metrics import (
    DECODING,
    VISION_CACHE,
    EngineMetrics,
    MetricsThread,
    StatusMetrics,
)
from iblip.serving.steps.policy import Policy
from iblip.serving.wire.answers import finish_from_answer
from iblip.serving.wire.errors import error_from_chain, status_from_error, text_from_error
from iblip.serving.wire.names import (
    CANCEL,
    CHAIN,
    ENCODER,
    FINISH,
    IMAGE_EMBEDS,
    PROMPT,
    QFORMER,
    TEXT,
    VISUAL_PROMPT,
)
from iblip.serving.wire.parameters import cancelled_key, parameters_from_json


class TritonPythonModel:
    """Decoupled: `execute` admits, the answers follow as the engine writes them."""

    def initialize(self, args):
        """Loads the language model's engine."""
        start_heartbeat()
        step = StepArguments.from_triton(args)
        step.check_alone()
        policy = Policy.from_environment(os.environ)
        self.read = step.question_reader(policy)
        self.largest = step.manifest.limits.max_batch
        self.engine = open_engine(
            step.directory,
            step.manifest,
            threads=step.threads,
            device=step.device,
            limits=step.limits,
        )
        self.decoders = step.decoders()
        self.vision_cache = step.vision_cache(os.environ)
        self.answering = Answering(
            self.engine,
            self.encode,
            decode=self.decode,
            decoders=self.decoders.count,
            check=self.check,
            callers=CallerLimits(
                requests=policy.max_caller_requests, tokens=policy.max_caller_tokens
            ),
        )
        labels = {"model": args["model_name"]}
        self.metrics = [
            MetricsThread(EngineMetrics(make_family, labels), self.answering.status),
            MetricsThread(StatusMetrics(DECODING, make_family, labels), self.decoders.status),
        ]
        if self.vision_cache is not None:
            families = StatusMetrics(VISION_CACHE, make_family, labels)
            self.metrics.append(MetricsThread(families, self.vision_cache.status))

    def execute(self, requests):
        """Admits the requests in their order."""
        for request in requests:
            reply = TritonReply(request.get_response_sender())
            try:
                parameters = request.parameters() or "{}"
                if not request.inputs() and CANCEL in (given := parameters_from_json(parameters)):
                    reply.cancelled(self.answering.cancel(cancelled_key(given)))
                    continue
                self.answering.check_queue()  # before the images are read
                given = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
                if PROMPT not in given:
                    raise InputError(f"the input {PROMPT!r} is missing")
                prompt = given.pop(PROMPT)
                question = self.read(given, prompt, parameters, request.timeout())
            except Exception as fault:  # it belongs to this request, not to the model's process
                self.answering.refuse(reply, fault)
            else:
                reply.stream = question.stream
                self.answering.answer(question, reply)

    def check(self, question):
        """Refuses what does not fit."""
        self.read.instruction(question)
        self.engine.check(question.prompt, question.images, question.options)

    def decode(self, question):
        """The question with the pixels of its images. What does not fit is refused before."""
        self.check(question)
        return question.decoded(self.decoders.pixels(question.encoded, question.reading))

    def encode(self, question):
        """The visual prompt of a question's images. What does not fit is refused before."""
        inputs = self.read.inputs(question)
        self.engine.check(question.prompt, question.images, question.options)
        if self.vision_cache is None:
            chain = partial(run_model, CHAIN, VISUAL_PROMPT)
            return encode_past_failures(chain, inputs, largest=self.largest)
        encoder = partial(run_model, ENCODER, IMAGE_EMBEDS)
        qformer = partial(run_model, QFORMER, VISUAL_PROMPT)
        return encode_cached(self.vision_cache, encoder, qformer, inputs, largest=self.largest)

    def finalize(self):
        """Ends what is running and frees the engine."""
        for metrics in self.metrics:
            metrics.close()
        self.decoders.close()  # first: an image may take seconds
        self.answering.close()


def run_model(model, output, inputs):
    """One output of another model: of the ensemble of vision encoder and Q-Former, or of these.

    It takes the inputs by name. It returns `None` where the run of these images failed before, as
    Triton's response cache keeps it.
    """
    call = pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=[output],
        inputs=[pb_utils.Tensor(name, array) for name, array in inputs.items()],
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU),
    )
    response = call.exec()
    if response.has_error():
        message = response.error().message()
        if "missing required input" in message:  # of a step whose input a kept failure leaves out
            return None
        raise error_from_chain(message)
    found = pb_utils.get_output_tensor_by_name(response, output)
    # The memory is the response's, and is freed with it.
    return None if found is None else np.array(found.as_numpy())


def make_family(name, text, kind):
    """A family of Triton's custom metrics; what makes one of its series.

    Raises `KeyError` for a kind that this Triton does not have.
    """
    value = vars(pb_utils.MetricFamily)[kind.upper()]
    family = pb_utils.MetricFamily(name=name, description=text, kind=value)
    return lambda labels, **buckets: family.Metric(labels=labels, **buckets)


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
        """The end of a cancellation: how many requests it met."""
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
