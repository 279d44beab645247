"""A question as a gRPC message, and the responses as an answer: what both clients share.

Knows Triton's protobuf messages; does no I/O.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import Answer, Priority
from iblip.engines.text.checks import check_images
from iblip.export.errors import ContractError, DeadlineError, IblipError, InputError, OptionError
from iblip.export.images import ImageSources, each_image, pixels_from_image
from iblip.serving.client.errors import (
    DisconnectedError,
    ProtocolError,
    UnknownHostError,
    UnreachableError,
)
from iblip.serving.client.faults import error_from_status
from iblip.serving.wire import (
    FINISH,
    PIXELS,
    PRIORITIES,
    PRIORITY,
    PROMPT,
    STREAM,
    TEXT,
    ServerContract,
    answer_from_finish,
    check_priority,
    parameters_from_options,
)

Message = Any
"""One of Triton's protobuf messages, which have no types to check against."""

RECONNECT_POLL_S = 0.1
"""Seconds between two attempts to reach a server that is down, while there is time."""

MAX_TIMEOUT_S = 1e9
"""The longest deadline, about 30 years; gRPC's and Triton's numbers end not far behind it."""

MAX_KEEPALIVE_S = 2_000_000
"""The longest time between pings; gRPC counts its milliseconds in 32 bits."""

MAX_MESSAGE_BYTES = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class KeepAlive:
    """Pings on a connection, to detect a server that has vanished.

    A server started by `iblip serve` accepts a ping every 5 seconds. With Triton's own default, a
    server closes the connection after three pings within five minutes of silence: ping it rarely.

    Attributes:
        every_s: seconds between pings while an answer is awaited.
        timeout_s: seconds without a reply to a ping after which the connection counts as lost.
    """

    every_s: float = 60.0
    timeout_s: float = 20.0

    def __post_init__(self) -> None:
        for seconds in (self.every_s, self.timeout_s):
            if not 0 < seconds <= MAX_KEEPALIVE_S:
                raise OptionError(
                    f"{self}: expected more than 0 seconds, at most {MAX_KEEPALIVE_S}"
                )


def channel_options(keepalive: KeepAlive, *, proxy: bool = False) -> list[tuple[str, int]]:
    """gRPC's options for a channel, through a proxy of the environment or without one."""
    return [
        ("grpc.enable_http_proxy", int(proxy)),
        # gRPC's own pauses between attempts grow to two minutes, and all channels share them.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", int(keepalive.every_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(keepalive.timeout_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),
    ]


class Deadline:
    """A time budget that several calls share.

    Args:
        timeout_s: seconds from now; `None` is no limit.

    Raises:
        OptionError: `timeout_s` is not a number above 0, or above `MAX_TIMEOUT_S`.
    """

    def __init__(self, timeout_s: float | None) -> None:
        if timeout_s is not None and not (
            isinstance(timeout_s, Real) and 0 < timeout_s <= MAX_TIMEOUT_S
        ):
            expected = f"more than 0 seconds, at most {MAX_TIMEOUT_S:g}, or None"
            raise OptionError(f"timeout_s is {timeout_s!r}; expected {expected}")
        self._end = None if timeout_s is None else time.monotonic() + float(timeout_s)

    def remaining(self, late: IblipError | None = None) -> float | None:
        """Seconds left; `None` where there is no limit.

        Raises:
            DeadlineError: it is over; or `late`, where that is given.
        """
        if self._end is None:
            return None
        left = self._end - time.monotonic()
        if left <= 0:
            raise late or DeadlineError("the answer was not finished by its deadline")
        return left

    def allows(self, seconds: float) -> bool:
        """Whether there is a limit, and more than so many seconds are left until then."""
        return self._end is not None and self._end - time.monotonic() > seconds


def waits_for(fault: IblipError, deadline: Deadline) -> bool:
    """Whether to try again: the server is down, so nothing was sent, and there is time to wait.

    A host that has no address is not waited for: that is a word misspelt more often than an outage.
    """
    is_down = isinstance(fault, UnreachableError) and not isinstance(fault, UnknownHostError)
    return is_down and deadline.allows(RECONNECT_POLL_S)


def config_request(model: str) -> Message:
    """The request for a model's config."""
    from tritonclient.grpc import service_pb2

    return service_pb2.ModelConfigRequest(name=model)


def contract_from_config(response: Message) -> ServerContract:
    """The contract in the config that the server sent.

    Raises:
        ProtocolError: the model is not one of this project's, or of another version.
    """
    parameters = response.config.parameters
    strings = {name: parameters[name].string_value for name in parameters}
    try:
        return ServerContract.from_parameters(strings)
    except ContractError as error:
        raise ProtocolError(str(error)) from error


def ranking_options(candidates: Sequence[str], length_penalty: float | None) -> GenerationOptions:
    """The options that ask for a ranking.

    Raises:
        OptionError: there is no candidate, or one is not usable.
    """
    options = GenerationOptions(candidates=tuple(candidates), length_penalty=length_penalty)
    if not options.candidates:
        raise OptionError("candidates is empty; expected at least one text")
    return options


def pixels_of_request(images: ImageSources, contract: ServerContract) -> npt.NDArray[np.uint8]:
    """The images as the server takes them, uint8 `[images, height, width, 3]`.

    Raises:
        InputError: an image cannot be used, or there are none or more than the server takes.
    """
    sources = each_image(images)
    check_images(len(sources), contract.limits.images)
    return np.stack([pixels_from_image(source, contract.preprocessing) for source in sources])


def infer_request(
    pixels: npt.NDArray[np.uint8],
    prompt: str,
    options: GenerationOptions,
    *,
    model: str,
    timeout_s: float | None,
    stream: bool,
    priority: Priority = "interactive",
) -> Message:
    """The request that asks one question.

    Args:
        pixels: uint8 `[images, height, width, 3]` at the server's own size.
        prompt: as the user wrote it.
        options: sent as request parameters.
        model: name of the Triton model.
        timeout_s: seconds after which the server, too, drops the request; `None` is no limit.
        stream: whether to send the text as it is generated, not all at once.
        priority: its place among the requests that wait.

    Raises:
        OptionError: `priority` is none.
        InputError: the prompt is not text that can be encoded as UTF-8.
    """
    from tritonclient.grpc import service_pb2

    data = _encode(prompt)
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name=PIXELS, datatype="UINT8", shape=pixels.shape)
    request.inputs.add(name=PROMPT, datatype="BYTES", shape=[1])
    request.raw_input_contents.append(pixels.tobytes())
    request.raw_input_contents.append(struct.pack("<I", len(data)) + data)
    for name, value in parameters_from_options(options).items():
        _set_parameter(request.parameters[name], value)
    request.parameters[STREAM].bool_param = stream
    if check_priority(priority) != PRIORITIES[0]:
        request.parameters[PRIORITY].string_param = priority
    if timeout_s is not None:
        request.parameters["timeout"].int64_param = int(timeout_s * 1e6)
    return request


def _encode(prompt: str) -> bytes:
    if not isinstance(prompt, str):
        raise InputError(f"the prompt is a {type(prompt).__name__}; expected text")
    try:
        return prompt.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the prompt is not valid Unicode text: {error}") from error


def _set_parameter(parameter: Message, value: int | float | str) -> None:
    if isinstance(value, str):
        parameter.string_param = value
    elif isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        parameter.int64_param = value
    else:
        parameter.double_param = value


class AnswerReader:
    """Reads the responses to one question, in order.

    Attributes:
        url: of the server, for messages.
        text: received so far.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.text = ""
        self._finish = ""
        self._error: IblipError | None = None

    def feed(self, response: Message) -> str:
        """The text in one response of the stream; empty for the finish and for an error.

        An error is the last response, and `answer` raises it: if the caller left between the error
        and the end of the stream, Triton 2.51 would never forget the request.

        Raises:
            ProtocolError: the response is not from one of this project's models.
        """
        if response.error_message:
            self._error = error_from_status("INTERNAL", response.error_message, url=self.url)
            return ""
        inner = response.infer_response
        if not inner.raw_output_contents:  # an empty final response, after the answer
            return ""
        tensors = {
            output.name: _string(data)
            for output, data in zip(inner.outputs, inner.raw_output_contents, strict=True)
        }
        try:
            text, finish = tensors[TEXT], tensors[FINISH]
        except KeyError as error:
            names = ", ".join(tensors)
            raise ProtocolError(f"the server sent {names}; expected {TEXT}, {FINISH}") from error
        self.text += text
        self._finish = finish or self._finish
        return text

    def answer(self) -> Answer:
        """The answer, once the stream has ended.

        Raises:
            IblipError: the error that the server sent, if it sent one.
            DisconnectedError: the stream ended before the answer did.
            ProtocolError: the finish is damaged.
        """
        if self._error is not None:
            raise self._error
        if not self._finish:
            raise DisconnectedError(f"the server at {self.url} ended the stream before the answer")
        try:
            return answer_from_finish(self.text, self._finish)
        except ContractError as error:
            raise ProtocolError(str(error)) from error


def _string(data: bytes) -> str:
    """The one element of a BYTES tensor: its length in 4 bytes, then UTF-8."""
    try:
        (length,) = struct.unpack_from("<I", data)
        return data[4 : 4 + length].decode()
    except (struct.error, UnicodeDecodeError) as error:
        raise ProtocolError(f"the server sent a damaged string: {data[:80]!r}") from error


DEFAULT_URL = "127.0.0.1:8001"
"""Where `iblip serve` listens for gRPC unless told otherwise."""

GREEDY = GenerationOptions()
