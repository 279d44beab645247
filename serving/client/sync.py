"""The synchronous client: `ask` returns an answer, `stream` yields its text as it is generated."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, Unpack

import grpc  # type: ignore[import-untyped]
from grpc.experimental import ChannelOptions  # type: ignore[import-untyped]

from iblip.engines.language_model.keywords import (
    GenerationKeywords,
    Options,
    options_with_keywords,
)
from iblip.engines.language_model.presets import Preset
from iblip.engines.language_model.types import Answer, Priority, RankedCandidate
from iblip.export.errors import DeadlineError, IblipError
from iblip.export.images import ImageSources
from iblip.serving.client.base import READY_S, AnyTimeout, Asked, BaseClient, asked_of_row
from iblip.serving.client.compat import trim_answer
from iblip.serving.client.errors import CancelledError
from iblip.serving.client.faults import CANCELLED, error_from_rpc
from iblip.serving.client.interrupts import Responses, apart
from iblip.serving.client.lavis import Lavis
from iblip.serving.client.mapping import CONCURRENCY, Question, Row, RowResult, map_rows
from iblip.serving.client.messages import (
    GREEDY,
    AnswerReader,
    check_ready,
    config_request,
    contract_from_config,
    ranking_options,
    ready_request,
    set_timeout,
)
from iblip.serving.client.patience import UNSET, WAITING, Attempts, Timeout
from iblip.serving.client.tally import Watcher
from iblip.serving.wire.contract import ServerContract


class Client(BaseClient):
    """Asks a server about images. Thread-safe; threads may ask at the same time.

        with Client("127.0.0.1:8001") as client:
            print(client.ask("digits.png", "How many digits are there?", max_new_tokens=30).text)
            for text in client.stream("digits.png", "Describe the image."):
                print(text, end="", flush=True)
            for result in client.map([("a.png", "What is it?"), ("b.png", "And here?")]):
                print(result.error or result.text)

    An image is a path (`str` or `Path`), encoded bytes, an open file, a Pillow image, uint8
    `[height, width, 3]` in RGB, a tensor of `torch.uint8` (`[height, width, 3]` or `[3, height,
    width]`), a `data:` address, or, with `image_urls=True`, an `https:` address. The server
    encodes an image once, however many questions are asked about it. Where the model takes several
    images (`contract().limits.images`), `image` may be a list of them, or an array with one more
    axis before the others.

    A client waits `Timeout()` and asks again as `Retries` says, unless it is told otherwise. It may
    be pickled, and closed more than once.

    Arguments: see `BaseClient`.
    """

    def _open(self) -> None:
        # Whoever reads a stream receives it, too: otherwise gRPC has a thread between.
        alone = (ChannelOptions.SingleThreadedUnaryStream, 1)
        self._channel, self._service = self._connect_channel(grpc, alone)

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

    def contract(self, *, timeout: AnyTimeout = UNSET) -> ServerContract:
        """What the server says about itself: preprocessing, limits, build. Requested once.

        Args:
            timeout: how long to wait for it; nothing is the client's own.

        Raises:
            UnreachableError: there is no server.
            NotServedError: the server has no such model, or is not ready.
            ProtocolError: the model is not one of this project's, or of another version.
            DeadlineError: the server did not reply in time.
        """
        return self._contract or self._ask_contract(self._attempts(timeout), threading.Event())

    def wait_until_ready(self, timeout: float | None = READY_S) -> ServerContract:
        """Waits until the server answers questions, and returns its contract.

        Args:
            timeout: seconds; `None` is for ever.

        Raises:
            UnreachableError, NotReadyError, DeadlineError: it is not ready after that time.
            UnknownHostError, AccessError, NotServedError, ProtocolError: waiting does not help.
        """
        attempts = Attempts(Timeout.settled(timeout, self.timeout), WAITING)
        request = ready_request(self.model)

        def ask(left: float | None) -> None:
            check_ready(self._stub.ModelReady(request, timeout=left), self._place)

        try:
            self._try(ask, attempts, threading.Event())
        except DeadlineError as late:
            if attempts.fault is None:
                raise
            raise attempts.fault from late  # which says more than that time is over
        return self._contract or self._ask_contract(attempts, threading.Event())

    def _ask_contract(self, attempts: Attempts, cancelled: threading.Event) -> ServerContract:
        request = config_request(self.model)

        def ask(left: float | None) -> None:
            response = self._stub.ModelConfig(request, timeout=left)
            self._contract = contract_from_config(response)

        self._try(ask, attempts, cancelled)
        assert self._contract is not None
        return self._contract

    def _try(
        self,
        ask: Callable[[float | None], object],
        attempts: Attempts,
        cancelled: threading.Event,
    ) -> None:
        """Calls `ask` with the seconds left, until it succeeds or `attempts` gives up."""
        while True:
            try:
                apart(partial(ask, attempts.remaining()))
                return
            except grpc.RpcError as error:
                fault = error_from_rpc(error, self._place)
                fault.__cause__ = error
            except IblipError as error:
                fault = error
            if cancelled.wait(attempts.pause(fault)):
                raise CancelledError(CANCELLED)

    def ask(
        self,
        image: ImageSources,
        prompt: str,
        *,
        options: Options = GREEDY,
        compat: str | None = None,
        timeout: AnyTimeout = UNSET,
        priority: Priority = "interactive",
        **keywords: Unpack[GenerationKeywords],
    ) -> Answer:
        """The whole answer.

        Args:
            image: see the class.
            prompt: the question or instruction.
            options: how to generate; greedy by default. May be a mapping, by name.
            compat: the original to answer like, `"lavis"`, `"hf"` or `"minigpt4"`: its options,
                which `options` override, and its trimming of the text. See `Preset.with_options`.
            timeout: how long to wait: `Timeout`, or seconds for this answer; `None` is for ever,
                nothing the client's own.
            priority: where others wait, interactive requests are answered before bulk ones, and
                bulk ones that have waited 30 seconds count as interactive.
            keywords: options by name, such as `max_new_tokens=30`; they override `options`.

        Raises:
            InputError: an image or the prompt cannot be used, or there are too many images.
            OptionError: an option is unknown or out of range.
            DeadlineError: the answer was not finished in time.
            EngineError, QueueFullError: the server's engine failed, or its queue is full.
            ClientError: see `serving.client.errors`.
        """
        asked = Asked(
            image=image,
            prompt=prompt,
            options=options_with_keywords(options, keywords),
            compat=compat,
            priority=priority,
            timeout=timeout,
        )
        stream, preset = self._start(asked, stream=False)
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
        timeout: AnyTimeout = UNSET,
        priority: Priority = "interactive",
        **keywords: Unpack[GenerationKeywords],
    ) -> AnswerStream:
        """The answer's text as it is generated; arguments and errors as in `ask`.

        The text is not trimmed as `compat` would: the pieces are the model's own text. The request
        is sent before this returns; iterating raises the error that ended it, if any. It is not
        sent again once its first text has come.
        """
        asked = Asked(
            image=image,
            prompt=prompt,
            options=options_with_keywords(options, keywords),
            compat=compat,
            priority=priority,
            timeout=timeout,
        )
        return self._start(asked, stream=True)[0]

    def map(
        self,
        rows: Iterable[Row],
        *,
        concurrency: int = CONCURRENCY,
        progress: bool | Watcher = False,
        options: Options = GREEDY,
        compat: str | None = None,
        timeout: AnyTimeout = UNSET,
        priority: Priority = "bulk",
        **keywords: Unpack[GenerationKeywords],
    ) -> Generator[RowResult[Answer]]:
        """Asks many questions; yields the results in the order of the rows.

        A row that fails is a result with an `error`, and the others go on. Rows are read as the
        results are taken, so `rows` may be a generator of any length. Leaving the loop cancels what
        is under way. To ride out a server that is started again, give `timeout=Timeout(connect=…)`
        more seconds than that takes.

        Args:
            rows: `(image, prompt)`, or mappings with `image`, `prompt`, and other arguments of
                `ask` where a row differs.
            concurrency: questions that are asked at the same time, 1 to 1024. More than the
                server has slots only helps to hide the way there and back.
            progress: `True` shows a line on stderr; a function is told of each row.
            options, compat, keywords: as in `ask`, for all rows.
            timeout: as in `ask`, for each row.
            priority: as in `ask`; others who ask interactively go first unless it says otherwise.

        Raises:
            OptionError: `concurrency` is out of range.
            InputError: `rows` is nothing to iterate over.
        """
        others = Asked(
            image=(),
            prompt="",
            options=options_with_keywords(options, keywords),
            compat=compat,
            priority=priority,
            timeout=timeout,
        )
        cancelled, running = threading.Event(), set[AnswerStream]()

        def ask(question: Question) -> Answer:
            asked = asked_of_row(question, others)
            stream, preset = self._start(asked, stream=False, cancelled=cancelled)
            running.add(stream)
            try:
                if cancelled.is_set():  # between the start and now: nobody else cancels it
                    stream.cancel()
                with stream:
                    return trim_answer(stream.answer, preset)
            finally:
                running.discard(stream)

        def cancel() -> None:
            cancelled.set()
            for stream in list(running):
                stream.cancel()

        return map_rows(ask, rows, concurrency=concurrency, progress=progress, cancel=cancel)

    def rank(
        self,
        image: ImageSources,
        prompt: str,
        candidates: Sequence[str],
        *,
        length_penalty: float | None = None,
        timeout: AnyTimeout = UNSET,
        priority: Priority = "interactive",
    ) -> tuple[RankedCandidate, ...]:
        """The candidates as answers, the most likely first; errors as in `ask`.

        Args:
            image: see the class.
            prompt: the question or instruction.
            candidates: 1 to 1000 texts.
            length_penalty: the sum of a candidate's log-probabilities is divided by its number of
                tokens to this power; `None` is 0.
            timeout: see `ask`.
            priority: see `ask`.
        """
        options = ranking_options(candidates, length_penalty)
        return self.ask(image, prompt, options=options, timeout=timeout, priority=priority).ranking

    @property
    def lavis(self) -> Lavis:
        """LAVIS's calls, with LAVIS's names and defaults."""
        return Lavis(self)

    def _start(
        self, asked: Asked, *, stream: bool, cancelled: threading.Event | None = None
    ) -> tuple[AnswerStream, Preset | None]:
        """Sends the question; the preset is the one that `compat` names."""
        attempts = self._attempts(asked.timeout)
        contract = self._contract or self._ask_contract(attempts, cancelled or threading.Event())
        request, preset = self._request(asked, contract, stream=stream)

        def send() -> Any:
            left = attempts.remaining()
            set_timeout(request, left)
            return self._stub.ModelStreamInfer(request, timeout=left)

        return AnswerStream(send, attempts, self._place), preset


class AnswerStream:
    """Iterates over the pieces of an answer; joined, the pieces are `answer.text`.

    A context manager: leaving it early cancels the answer, which frees its slot in the engine.
    """

    def __init__(self, send: Callable[[], Any], attempts: Attempts, url: str) -> None:
        self._send, self._attempts = send, attempts
        self._call = Responses(send)
        self._reader = AnswerReader(url)
        self._cancelled = threading.Event()
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
        while self._answer is None:
            if self._cancelled.is_set():
                raise CancelledError(CANCELLED)
            try:
                for response in self._call:
                    text = self._reader.feed(response)
                    if text:
                        return text
                self._answer = self._reader.answer()
            except grpc.RpcError as error:
                fault = error_from_rpc(error, self._reader.url)
                fault.__cause__ = error
                self._send_again(fault)
            except IblipError as fault:
                self._send_again(fault)
        raise StopIteration

    def _send_again(self, fault: IblipError) -> None:
        """Waits and sends the question again; raises `fault` where that is over."""
        self._call.cancel()  # nobody will read the rest
        pause_s = self._attempts.pause(fault, begun=bool(self._reader.text))
        if self._cancelled.wait(pause_s):
            raise CancelledError(CANCELLED)
        self._reader = AnswerReader(self._reader.url)
        self._call = Responses(self._send)
        if self._cancelled.is_set():  # it was cancelled while it was sent
            self._call.cancel()

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
        if self._answer is None:
            self._cancelled.set()
            self._call.cancel()
