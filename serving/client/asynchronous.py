"""The asyncio client: `serving.client.sync` with `await` and `async for`."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Sequence,
)
from threading import Lock
from types import TracebackType
from typing import Any, Self, Unpack

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]

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
from iblip.serving.client.lavis import AsyncLavis
from iblip.serving.client.mapping import CONCURRENCY, Question, Row, RowResult, map_rows_async
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


class AsyncClient(BaseClient):
    """Asks a server about images from an event loop; arguments as in `Client`.

    ::

        async with AsyncClient("127.0.0.1:8001") as client:
            answer = await client.ask("digits.png", "How many digits are there?")
            async for text in client.stream("digits.png", "Describe the image."):
                print(text, end="", flush=True)
            async for result in client.map([("a.png", "What is it?"), ("b.png", "And here?")]):
                print(result.error or result.text)

    It may be made anywhere, such as in a module or another thread, and used in any loop: in one
    after another (`asyncio.run` twice), and in several that run at the same time in threads of
    their own. Each loop has a connection.
    """

    def _open(self) -> None:
        # A channel belongs to the loop in which it was made: the first call there makes it.
        self._channels: dict[asyncio.AbstractEventLoop, tuple[grpc.aio.Channel, Any]] = {}
        self._lock = Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections, which ends every answer that is still being generated."""
        self._closed = True
        with self._lock:
            channels, self._channels = self._channels, {}
        for loop, (channel, _) in channels.items():
            if loop is asyncio.get_running_loop():
                await channel.close()
            elif loop.is_running():
                asyncio.run_coroutine_threadsafe(channel.close(), loop)

    @property
    def _stub(self) -> Any:
        """The service, connected from the running loop."""
        self._check_open()
        loop = asyncio.get_running_loop()
        with self._lock:
            self._channels = {
                one: channel for one, channel in self._channels.items() if not one.is_closed()
            }
            if loop not in self._channels:
                self._channels[loop] = self._connect_channel(grpc.aio)
            return self._channels[loop][1]

    async def contract(self, *, timeout: AnyTimeout = UNSET) -> ServerContract:
        """As `Client.contract`."""
        return self._contract or await self._ask_contract(self._attempts(timeout))

    async def wait_until_ready(self, timeout: float | None = READY_S) -> ServerContract:
        """As `Client.wait_until_ready`."""
        attempts = Attempts(Timeout.settled(timeout, self.timeout), WAITING)
        request = ready_request(self.model)

        async def ask(left: float | None) -> None:
            check_ready(await self._stub.ModelReady(request, timeout=left), self._place)

        try:
            await self._try(ask, attempts)
        except DeadlineError as late:
            if attempts.fault is None:
                raise
            raise attempts.fault from late  # which says more than that time is over
        return self._contract or await self._ask_contract(attempts)

    async def _ask_contract(self, attempts: Attempts) -> ServerContract:
        request = config_request(self.model)

        async def ask(left: float | None) -> None:
            response = await self._stub.ModelConfig(request, timeout=left)
            self._contract = contract_from_config(response)

        await self._try(ask, attempts)
        assert self._contract is not None
        return self._contract

    async def _try(
        self, ask: Callable[[float | None], Awaitable[object]], attempts: Attempts
    ) -> None:
        """Calls `ask` with the seconds left, until it succeeds or `attempts` gives up."""
        while True:
            try:
                await ask(attempts.remaining())
                return
            except grpc.RpcError as error:
                fault = error_from_rpc(error, self._place)
                fault.__cause__ = error
            except IblipError as error:
                fault = error
            await asyncio.sleep(attempts.pause(fault))

    async def ask(
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
        """As `Client.ask`. Cancelling the task cancels the answer."""
        asked = Asked(
            image=image,
            prompt=prompt,
            options=options_with_keywords(options, keywords),
            compat=compat,
            priority=priority,
            timeout=timeout,
        )
        return await self._answer(asked)

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
    ) -> AsyncAnswerStream:
        """As `Client.stream`; the image is decoded in another thread.

        The question is sent when the stream is first iterated over, awaited, or entered::

            async for text in client.stream(image, prompt): ...

            stream = await client.stream(image, prompt)    # sent here; an error is raised here
            async for text in stream: ...
            answer = await stream.answer()
        """
        asked = Asked(
            image=image,
            prompt=prompt,
            options=options_with_keywords(options, keywords),
            compat=compat,
            priority=priority,
            timeout=timeout,
        )
        return AsyncAnswerStream(lambda: self._start(asked, stream=True), self._place)

    def map(
        self,
        rows: Iterable[Row] | AsyncIterable[Row],
        *,
        concurrency: int = CONCURRENCY,
        progress: bool | Watcher = False,
        options: Options = GREEDY,
        compat: str | None = None,
        timeout: AnyTimeout = UNSET,
        priority: Priority = "bulk",
        **keywords: Unpack[GenerationKeywords],
    ) -> AsyncGenerator[RowResult[Answer]]:
        """As `Client.map`, for `async for`; `rows` may also be an asynchronous iterable.

        A generator that blocks blocks the loop: give an asynchronous one where reading a row takes
        long. Leaving the loop early cancels what is under way once the iterator is closed, which
        `contextlib.aclosing` does at once.
        """
        others = Asked(
            image=(),
            prompt="",
            options=options_with_keywords(options, keywords),
            compat=compat,
            priority=priority,
            timeout=timeout,
        )

        async def ask(question: Question) -> Answer:
            return await self._answer(asked_of_row(question, others))

        return map_rows_async(ask, rows, concurrency=concurrency, progress=progress)

    async def rank(
        self,
        image: ImageSources,
        prompt: str,
        candidates: Sequence[str],
        *,
        length_penalty: float | None = None,
        timeout: AnyTimeout = UNSET,
        priority: Priority = "interactive",
    ) -> tuple[RankedCandidate, ...]:
        """As `Client.rank`. Cancelling the task cancels the ranking."""
        options = ranking_options(candidates, length_penalty)
        answer = await self.ask(image, prompt, options=options, timeout=timeout, priority=priority)
        return answer.ranking

    @property
    def lavis(self) -> AsyncLavis:
        """LAVIS's calls, with LAVIS's names and defaults."""
        return AsyncLavis(self)

    async def _answer(self, asked: Asked) -> Answer:
        async with AsyncAnswerStream(
            lambda: self._start(asked, stream=False), self._place
        ) as stream:
            answer = await stream.answer()
        return trim_answer(answer, stream.preset)

    async def _start(
        self, asked: Asked, *, stream: bool
    ) -> tuple[Callable[[], Any], Attempts, Preset | None]:
        """What sends the question; the preset is the one that `compat` names."""
        attempts = self._attempts(asked.timeout)
        contract = self._contract or await self._ask_contract(attempts)
        request, preset = await asyncio.to_thread(self._request, asked, contract, stream=stream)

        def send() -> Any:
            left = attempts.remaining()
            set_timeout(request, left)
            return self._stub.ModelStreamInfer(request, timeout=left)

        return send, attempts, preset


class AsyncAnswerStream:
    """Iterates over the pieces of an answer; as `AnswerStream`.

    Awaiting it sends the question, and gives the stream; so does entering it. Iterating over it
    does so, too, where that has not been done.

    Attributes:
        preset: the one that `compat` names, once the question has been sent.
    """

    def __init__(
        self,
        start: Callable[[], Awaitable[tuple[Callable[[], Any], Attempts, Preset | None]]],
        url: str,
    ) -> None:
        self._start = start
        self._call: Any = None
        self._reader = AnswerReader(url)
        self._cancelled = asyncio.Event()
        self._answer: Answer | None = None
        self.preset: Preset | None = None

    def __await__(self) -> Generator[Any, Any, Self]:
        return self._begun().__await__()

    async def __aenter__(self) -> Self:
        return await self._begun()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.cancel()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        await self._begun()
        while self._answer is None:
            try:
                async for response in self._call:
                    text = self._reader.feed(response)
                    if text:
                        return text
                self._answer = self._reader.answer()
            except asyncio.CancelledError:
                # gRPC raises the task's own exception for a cancelled call as well.
                if not self._call.cancelled() or _task_is_cancelled():
                    raise
                raise CancelledError(CANCELLED) from None
            except grpc.RpcError as error:
                fault = error_from_rpc(error, self._reader.url)
                fault.__cause__ = error
                await self._send_again(fault)
            except IblipError as fault:
                await self._send_again(fault)
        raise StopAsyncIteration

    async def _begun(self) -> Self:
        if self._call is None:
            if self._cancelled.is_set():
                raise CancelledError(CANCELLED)
            self._send, self._attempts, self.preset = await self._start()
            del self._start  # and with it the images, which the request has as pixels
            self._call = self._send()
            if self._attempts.is_only_one:
                del self._send  # and with it the request, while its answer waits in a queue
        return self

    async def _send_again(self, fault: IblipError) -> None:
        """Waits and sends the question again; raises `fault` where that is over."""
        self._call.cancel()  # nobody will read the rest
        pause_s = self._attempts.pause(fault, begun=bool(self._reader.text))
        try:
            async with asyncio.timeout(pause_s):
                await self._cancelled.wait()
        except TimeoutError:
            self._reader = AnswerReader(self._reader.url)
            self._call = self._send()
        else:
            raise CancelledError(CANCELLED)

    @property
    def text(self) -> str:
        """The text received so far."""
        return self._reader.text

    async def answer(self) -> Answer:
        """The whole answer; reads the stream to its end first."""
        async for _ in self:
            pass
        assert self._answer is not None
        return self._answer

    async def cancel(self) -> None:
        """Stops the answer: the server frees its slot within a step.

        Iterating further raises `CancelledError`. Does nothing after the end.
        """
        self._cancelled.set()
        if self._call is not None:
            self._call.cancel()


def _task_is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
