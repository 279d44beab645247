"""A question as a gRPC message, and the responses as an answer: what both clients share.

Knows Triton's protobuf messages; does no I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import Answer, Priority
from iblip.engines.text.checks import check_images
from iblip.export.errors import ContractError, IblipError, InputError, OptionError
from iblip.export.images import ImageSources, Reading, each_image, pixels_from_image
from iblip.export.messages import kind_of
from iblip.serving.client.errors import DisconnectedError, NotReadyError, ProtocolError
from iblip.serving.client.faults import error_from_status
from iblip.serving.client.image_urls import ImageURLs, is_web_address
from iblip.serving.client.protocol import (
    Message,
    ModelConfigRequest,
    ModelInferRequest,
    ModelReadyRequest,
)
from iblip.serving.wire.answers import answer_from_finish
from iblip.serving.wire.contract import ServerContract
from iblip.serving.wire.names import FINISH, PIXELS, PRIORITY, PROMPT, STREAM, TEXT
from iblip.serving.wire.parameters import PRIORITIES, check_priority, parameters_from_options

MAX_KEEPALIVE_S = 2_000_000
"""The longest time between pings; gRPC counts its milliseconds in 32 bits."""

MAX_ATTEMPT_MS = 3_600_000
"""The longest attempt to connect, in milliseconds."""

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


def channel_options(
    keepalive: KeepAlive, *, proxy: bool = False, connect: float | None = None
) -> list[tuple[str, int]]:
    """gRPC's options for a channel.

    Args:
        keepalive: pings.
        proxy: whether a proxy of the environment is on the way.
        connect: seconds that one attempt to connect may take; 0 and `None` are gRPC's own 20.
    """
    attempt_ms = min(int((connect or 20.0) * 1000) or 1, MAX_ATTEMPT_MS)
    return [
        ("grpc.min_reconnect_backoff_ms", attempt_ms),
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


def config_request(model: str) -> Message:
    """The request for a model's config."""
    return ModelConfigRequest(name=model)


def ready_request(model: str) -> Message:
    """The request that asks whether a model is ready."""
    return ModelReadyRequest(name=model)


def check_ready(response: Message, url: str) -> None:
    """Raises `NotReadyError` where the server says that a model is not ready."""
    if not response.ready:
        raise NotReadyError(f"the server at {url} is not ready: its model is still loading")


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
    listed: Any = candidates
    if isinstance(candidates, Iterable) and not isinstance(candidates, str):
        listed = tuple(candidates)
    options = GenerationOptions(candidates=listed, length_penalty=length_penalty)
    if not options.candidates:
        raise OptionError("candidates is empty; expected at least one text")
    return options


def pixels_of_request(
    images: ImageSources,
    contract: ServerContract,
    urls: ImageURLs | None = None,
    preprocessing: Reading = "viewed",
) -> npt.NDArray[np.uint8]:
    """The images as the server takes them, uint8 `[images, height, width, 3]`.

    Args:
        images: one image, or several.
        contract: the server's.
        urls: which images may be fetched from the web; `None` fetches none.
        preprocessing: how files become RGB.

    Raises:
        InputError: an image cannot be used, or there are none or more than the server takes.
    """
    sources = each_image(images)
    check_images(len(sources), contract.limits.images)
    if urls is not None:
        sources = [urls.fetch(one) if is_web_address(one) else one for one in sources]
    settings = contract.preprocessing
    return np.stack([pixels_from_image(source, settings, preprocessing) for source in sources])


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
    data = _encode(prompt)
    request = ModelInferRequest(model_name=model)
    request.inputs.add(name=PIXELS, datatype="UINT8", shape=pixels.shape)
    request.inputs.add(name=PROMPT, datatype="BYTES", shape=[1])
    request.raw_input_contents.append(pixels.tobytes())
    request.raw_input_contents.append(struct.pack("<I", len(data)) + data)
    for name, value in parameters_from_options(options).items():
        _set_parameter(request.parameters[name], value)
    request.parameters[STREAM].bool_param = stream
    if check_priority(priority) != PRIORITIES[0]:
        request.parameters[PRIORITY].string_param = priority
    set_timeout(request, timeout_s)
    return request


def set_timeout(request: Message, timeout_s: float | None) -> None:
    """Says in a request after how many seconds the server, too, drops it; `None` says nothing."""
    if timeout_s is not None:
        request.parameters["timeout"].int64_param = int(timeout_s * 1e6)


def _encode(prompt: str) -> bytes:
    if not isinstance(prompt, str):
        raise InputError(f"the prompt is {kind_of(prompt)}; expected text")
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
