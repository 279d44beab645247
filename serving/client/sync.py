"""The client for ordinary code: `ask` for an answer, `stream` for its text as it is written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import grpc  # type: ignore[import-untyped]

from iblip.engines.language_model.types import Answer, RankedCandidate
from iblip.export.errors import IblipError
from iblip.export.images import ImageSources
from iblip.serving.client.compat import Options, finished, resolved
from iblip.serving.client.faults import error_from_status
from iblip.serving.client.lavis import Lavis
from iblip.serving.client.messages import (
    CANCEL_TIMEOUT_S,
    DEFAULT_URL,
    GREEDY,
    AnswerReader,
    Deadline,
    KeepAlive,
    cancellation,
    channel_options,
    config_request,
    contract_from_config,
    pixels_of_request,
    question,
    ranking_options,
)
from iblip.serving.wire import ENSEMBLE, ServerContract


class Client:
    """Asks a server about images. Thread-safe, and good for many questions at once.

        with Client("127.0.0.1:8001") as client:
            print(client.ask("digits.png", "How many digits are there?").text)
            for text in client.stream("digits.png", "Describe the image."):
                print(text, end="", flush=True)

    An image is a path, encoded bytes, a Pillow image, or uint8 `[height, width, 3]` in RGB. Asked
    many questions about one image, the server encodes it once. Where the model takes several
    (`contract().limits.images`), `image` may be a list of them, or uint8
    `[frames, height, width, 3]`.

    Args:
        url: `host:port` of the server's gRPC service. Nothing is connected before the first call.
        timeout_s: of every answer, in seconds, unless a call names its own; `None` waits for ever.
        model: the Triton ensemble.
        keepalive: pings that notice a server which vanished.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_s: float | None = None,
        model: str = ENSEMBLE,
        keepalive: KeepAlive | None = None,
    ) -> None:
        from tritonclient.grpc import service_pb2_grpc

        self.url = url
        self.model = model
        self.timeout_s = timeout_s
        options = channel_options(keepalive or KeepAlive())
        self._channel = grpc.insecure_channel(url, options=options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._contract: ServerContract | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection, and with it every answer that is still being written."""
        self._channel.close()

    def contract(self, *, timeout_s: float | None = None) -> ServerContract:
        """What the server says of itself: preprocessing, limits, build. Asked for once.

        Raises:
            UnreachableError: there is no server.
            NotServedError: the server has no such model.
            ProtocolError: the model is not one of this project.
            DeadlineError: no answer in time.
        """
        if self._contract is None:
            try:
                response = self._stub.ModelConfig(config_request(self.model), timeout=timeout_s)
            except grpc.RpcError as error:
                raise _fault(error, self.url) from error
            self._contract = contract_from_config(response)
        return self._contract

    def ask(
        self,
        image: ImageSources,
        prompt: str,
        *,
        options: Options = GREEDY,
        compat: str | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """The whole answer.

        Args:
            image: see the class.
            prompt: the question or instruction.
            options: how to generate; greedy by default. May be a mapping, by name.
            compat: the original to answer as, `"lavis"`, `"hf"` or `"minigpt4"`: its options, over
                which `options` go, and its trimming of the text. See `Preset.with_options`.
            timeout_s: of this answer, in seconds; `None` takes the client's own.

        Raises:
            InputError: an image or the prompt cannot be used, or there are too many images.
            OptionError: an option does not fit.
            DeadlineError: the answer was not finished in time.
            EngineError, QueueFullError: the server's engine failed, or takes no more.
            ClientError: see `serving.client.errors`.
        """
        with self._asked(image, prompt, options, compat, timeout_s, stream=False) as stream:
            answer = stream.answer
        return finished(answer, resolved(self.contract(), options, compat)[1])

    def stream(
        self,
        image: ImageSources,
        prompt: str,
        *,
        options: Options = GREEDY,
        compat: str | None = None,
        timeout_s: float | None = None,
    ) -> AnswerStream:
        """The answer's text as it is written; arguments and errors as in `ask`.

        It is not trimmed as `compat` would have it: the pieces are the answer's own text.
        The request is sent before this returns. Iterating raises what made it fail.
        """
        return self._asked(image, prompt, options, compat, timeout_s, stream=True)

    def rank(
        self,
        image: ImageSources,
        prompt: str,
        candidates: Sequence[str],
        *,
        length_penalty: float | None = None,
        timeout_s: float | None = None,
    ) -> tuple[RankedCandidate, ...]:
        """The candidates as answers, the likeliest first; errors as in `ask`.

        Args:
            image: see the class.
            prompt: the question or instruction.
            candidates: 1 to 1000 texts.
            length_penalty: the sum of a candidate's log-probabilities is divided by its number of
                tokens to this power; `None` is 0.
            timeout_s: of this answer, in seconds; `None` takes the client's own.
        """
        options = ranking_options(candidates, length_penalty)
        return self.ask(image, prompt, options=options, timeout_s=timeout_s).ranking

    @property
    def lavis(self) -> Lavis:
        """LAVIS's calls, with its names and defaults."""
        return Lavis(self)

    def _asked(
        self,
        image: ImageSources,
        prompt: str,
        options: Options,
        compat: str | None,
        timeout_s: float | None,
        *,
        stream: bool,
    ) -> AnswerStream:
        deadline = Deadline(self.timeout_s if timeout_s is None else timeout_s)
        contract = self.contract(timeout_s=deadline.remaining())
        pixels = pixels_of_request(image, contract)
        made, _ = resolved(contract, options, compat)
        remaining = deadline.remaining()
        request = question(
            pixels, prompt, made, model=self.model, timeout_s=remaining, stream=stream
        )
        call = self._stub.ModelStreamInfer(iter([request]), timeout=remaining)
        return AnswerStream(call, AnswerReader(self.url), lambda: self._forget(request.id))

    def _forget(self, request_id: str) -> None:
        message = iter([cancellation(request_id)])
        with contextlib.suppress(grpc.RpcError, ValueError):  # gone already, it needs no telling
            for _ in self._stub.ModelStreamInfer(message, timeout=CANCEL_TIMEOUT_S):
                pass


class AnswerStream:
    """Iterates over the pieces of an answer; the pieces, joined, are `answer.text`.

    A context manager: leaving it early cancels the answer, which frees its place in the engine.
    """

    def __init__(self, call: Any, reader: AnswerReader, forget: Callable[[], None]) -> None:
        self._call = call
        self._reader = reader
        self._forget = forget
        self._answer: Answer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._answer is not None:
            raise StopIteration
        try:
            for response in self._call:
                text = self._reader.feed(response)
                if text:
                    return text
            self._answer = self._reader.answer()
        except grpc.RpcError as error:
            raise _fault(error, self._reader.url) from error
        except IblipError:
            self._call.cancel()  # nothing more of it is wanted
            raise
        raise StopIteration

    @property
    def text(self) -> str:
        """What has come so far."""
        return self._reader.text

    @property
    def answer(self) -> Answer:
        """The whole answer: iterates to the end where that has not been done."""
        for _ in self:
            pass
        assert self._answer is not None
        return self._answer

    def cancel(self) -> None:
        """Stops the answer and returns once its place in the engine is free.

        Iterating on raises `CancelledError`. Harmless after the end.
        """
        if self._call.cancel():
            self._forget()


def _fault(error: Any, url: str) -> IblipError:
    return error_from_status(error.code().name, error.details() or "", url=url)
