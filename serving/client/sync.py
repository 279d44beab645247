"""The synchronous client: `ask` returns an answer, `stream` yields its text as it is generated."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import grpc  # type: ignore[import-untyped]

from iblip.engines.language_model.presets import Preset
from iblip.engines.language_model.types import Answer, Priority, RankedCandidate
from iblip.export.errors import IblipError
from iblip.export.images import ImageSources
from iblip.serving.client.base import BaseClient
from iblip.serving.client.compat import Options, resolve_options, trim_answer
from iblip.serving.client.faults import error_from_rpc
from iblip.serving.client.lavis import Lavis
from iblip.serving.client.messages import (
    GREEDY,
    RECONNECT_POLL_S,
    AnswerReader,
    Deadline,
    config_request,
    contract_from_config,
    infer_request,
    pixels_of_request,
    ranking_options,
    waits_for,
)
from iblip.serving.wire import ServerContract


class Client(BaseClient):
    """Asks a server about images. Thread-safe; threads may ask at the same time.

        with Client("127.0.0.1:8001") as client:
            print(client.ask("digits.png", "How many digits are there?").text)
            for text in client.stream("digits.png", "Describe the image."):
                print(text, end="", flush=True)

    An image is a path, encoded bytes, a Pillow image, or uint8 `[height, width, 3]` in RGB. The
    server encodes an image once, however many questions are asked about it. Where the model takes
    several images (`contract().limits.images`), `image` may be a list of them, or uint8
    `[frames, height, width, 3]`.

    Where `timeout_s` is given, a server that is down is waited for until then; without it, an
    `UnreachableError` comes at once. A client may be pickled, and closed more than once.

    Arguments: see `BaseClient`.
    """

    def _open(self) -> None:
        self._channel, self._service = self._connect_channel(grpc)

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
        """Closes the connection, which ends every answer that is still being generated."""
        self._closed = True
        self._channel.close()

    @property
    def _stub(self) -> Any:
        self._check_open()
        return self._service

    def contract(self, *, timeout_s: float | None = None) -> ServerContract:
        """What the server says about itself: preprocessing, limits, build. Requested once.

        Raises:
            UnreachableError: there is no server.
            NotServedError: the server has no such model.
            ProtocolError: the model is not one of this project's, or of another version.
            DeadlineError: the server did not reply in time.
        """
        return self._contract or self._ask_contract(Deadline(timeout_s))

    def _ask_contract(self, deadline: Deadline) -> ServerContract:
        request, fault = config_request(self.model), None
        while self._contract is None:
            try:
                response = self._stub.ModelConfig(request, timeout=deadline.remaining(fault))
            except grpc.RpcError as error:
                fault = error_from_rpc(error, self._place)
                if not waits_for(fault, deadline):
                    raise fault from error
                time.sleep(RECONNECT_POLL_S)
            else:
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
        priority: Priority = "interactive",
    ) -> Answer:
        """The whole answer.

        Args:
            image: see the class.
            prompt: the question or instruction.
            options: how to generate; greedy by default. May be a mapping, by name.
            compat: the original to answer like, `"lavis"`, `"hf"` or `"minigpt4"`: its options,
                which `options` override, and its trimming of the text. See `Preset.with_options`.
            timeout_s: seconds for this answer; `None` takes the client's own.
            priority: where others wait, interactive requests are answered before bulk ones, and
                bulk ones that have waited 30 seconds count as interactive.

        Raises:
            InputError: an image or the prompt cannot be used, or there are too many images.
            OptionError: an option is unknown or out of range.
            DeadlineError: the answer was not finished in time.
            EngineError, QueueFullError: the server's engine failed, or its queue is full.
            ClientError: see `serving.client.errors`.
        """
        stream, preset = self._start(
            image, prompt, options, compat, timeout_s, priority, stream=False
        )
        with stream:
            answer = stream.answer
        return trim_answer(answer, preset)

    def stream(
        self,
        image: ImageSources,
        prompt: str,
        *,
        options: Options = GREEDY,
        compat: str | None = None,
        timeout_s: float | None = None,
        priority: Priority = "interactive",
    ) -> AnswerStream:
        """The answer's text as it is generated; arguments and errors as in `ask`.

        The text is not trimmed as `compat` would: the pieces are the model's own text. The request
        is sent before this returns; iterating raises the error that ended it, if any.
        """
        return self._start(image, prompt, options, compat, timeout_s, priority, stream=True)[0]

    def rank(
        self,
        image: ImageSources,
        prompt: str,
        candidates: Sequence[str],
        *,
        length_penalty: float | None = None,
        timeout_s: float | None = None,
        priority: Priority = "interactive",
    ) -> tuple[RankedCandidate, ...]:
        """The candidates as answers, the most likely first; errors as in `ask`.

        Args:
            image: see the class.
            prompt: the question or instruction.
            candidates: 1 to 1000 texts.
            length_penalty: the sum of a candidate's log-probabilities is divided by its number of
                tokens to this power; `None` is 0.
            timeout_s: seconds for this answer; `None` takes the client's own.
            priority: see `ask`.
        """
        options = ranking_options(candidates, length_penalty)
        return self.ask(
            image, prompt, options=options, timeout_s=timeout_s, priority=priority
        ).ranking

    @property
    def lavis(self) -> Lavis:
        """LAVIS's calls, with LAVIS's names and defaults."""
        return Lavis(self)

    def _start(
        self,
        image: ImageSources,
        prompt: str,
        options: Options,
        compat: str | None,
        timeout_s: float | None,
        priority: Priority,
        *,
        stream: bool,
    ) -> tuple[AnswerStream, Preset | None]:
        """Sends the question; the preset is the one that `compat` names."""
        deadline = Deadline(self.timeout_s if timeout_s is None else timeout_s)
        contract = self._contract or self._ask_contract(deadline)
        pixels = pixels_of_request(image, contract)
        settled, preset = resolve_options(contract, options, compat)
        remaining = deadline.remaining()
        request = infer_request(
            pixels,
            prompt,
            settled,
            model=self.model,
            timeout_s=remaining,
            stream=stream,
            priority=priority,
        )

        def send(late: IblipError | None = None) -> Any:
            left = deadline.remaining(late)
            return self._stub.ModelStreamInfer(iter([request]), timeout=left)

        reader = AnswerReader(self._place)
        return AnswerStream(send, reader, deadline), preset


class AnswerStream:
    """Iterates over the pieces of an answer; joined, the pieces are `answer.text`.

    A context manager: leaving it early cancels the answer, which frees its slot in the engine.
    """

    def __init__(
        self,
        send: Callable[..., Any],
        reader: AnswerReader,
        deadline: Deadline,
    ) -> None:
        self._send = send
        self._call = send()
        self._reader = reader
        self._deadline = deadline
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
            while (response := self._receive()) is not None:
                text = self._reader.feed(response)
                if text:
                    return text
            self._answer = self._reader.answer()
        except IblipError:
            self._call.cancel()  # nobody will read the rest
            raise
        raise StopIteration

    def _receive(self) -> Any:
        """The next response, `None` after the last; sends again what never reached a server."""
        while True:
            try:
                return next(self._call, None)
            except grpc.RpcError as error:
                fault = error_from_rpc(error, self._reader.url)
                if not waits_for(fault, self._deadline):
                    raise fault from error
            time.sleep(RECONNECT_POLL_S)
            self._call = self._send(fault)

    @property
    def text(self) -> str:
        """The text received so far."""
        return self._reader.text

    @property
    def answer(self) -> Answer:
        """The whole answer; reads the stream to its end first."""
        for _ in self:
            pass
        assert self._answer is not None
        return self._answer

    def cancel(self) -> None:
        """Stops the answer: the server frees its slot within a step.

        Iterating further raises `CancelledError`. Does nothing after the end.
        """
        self._call.cancel()
