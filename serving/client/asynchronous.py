"""The asyncio client: `serving.client.sync` with `await` and `async for`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Self

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]

from iblip.engines.language_model.presets import Preset
from iblip.engines.language_model.types import Answer, Priority, RankedCandidate
from iblip.export.errors import IblipError
from iblip.export.images import ImageSources
from iblip.serving.client.base import BaseClient
from iblip.serving.client.compat import Options, resolve_options, trim_answer
from iblip.serving.client.errors import CancelledError, ClientError
from iblip.serving.client.faults import error_from_rpc
from iblip.serving.client.lavis import AsyncLavis
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


class AsyncClient(BaseClient):
    """Asks a server about images from an event loop; arguments as in `Client`.

    ::

        async with AsyncClient("127.0.0.1:8001") as client:
            answer = await client.ask("digits.png", "How many digits are there?")
            async for text in await client.stream("digits.png", "Describe the image."):
                print(text, end="", flush=True)

    It may be made anywhere, such as in a module or another thread, and used in one loop after
    another (`asyncio.run` twice), but not in two that run at the same time: a `ClientError` then
    says so.
    """

    def _open(self) -> None:
        # A channel belongs to the loop in which it was made: the first call makes it.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channel: grpc.aio.Channel | None = None
        self._service: Any = None

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
        """Closes the connection, which ends every answer that is still being generated."""
        self._closed = True
        if self._channel is not None and self._loop is asyncio.get_running_loop():
            await self._channel.close()
        self._channel = self._service = None

    @property
    def _stub(self) -> Any:
        """The service, connected from the running loop."""
        self._check_open()
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._connect(loop)
        return self._service

    def _connect(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not None and self._loop.is_running():
            raise ClientError(
                f"this AsyncClient of {self.url} is in use in another event loop, which still runs."
                " Create one client for each loop."
            )
        self._channel, self._service = self._connect_channel(grpc.aio)
        self._loop = loop

    async def contract(self, *, timeout_s: float | None = None) -> ServerContract:
        """As `Client.contract`."""
        return self._contract or await self._ask_contract(Deadline(timeout_s))

    async def _ask_contract(self, deadline: Deadline) -> ServerContract:
        request, fault = config_request(self.model), None
        while self._contract is None:
            try:
                response = await self._stub.ModelConfig(request, timeout=deadline.remaining(fault))
            except grpc.RpcError as error:
                fault = error_from_rpc(error, self._place)
                if not waits_for(fault, deadline):
                    raise fault from error
                await asyncio.sleep(RECONNECT_POLL_S)
            else:
                self._contract = contract_from_config(response)
        return self._contract

    async def ask(
        self,
        image: ImageSources,
        prompt: str,
        *,
        options: Options = GREEDY,
        compat: str | None = None,
        timeout_s: float | None = None,
        priority: Priority = "interactive",
    ) -> Answer:
        """As `Client.ask`. Cancelling the task cancels the answer."""
        stream, preset = await self._start(
            image, prompt, options, compat, timeout_s, priority, stream=False
        )
        async with stream:
            answer = await stream.answer()
        return trim_answer(answer, preset)

    async def stream(
        self,
        image: ImageSources,
        prompt: str,
        *,
        options: Options = GREEDY,
        compat: str | None = None,
        timeout_s: float | None = None,
        priority: Priority = "interactive",
    ) -> AsyncAnswerStream:
        """As `Client.stream`; the image is decoded in another thread."""
        stream, _ = await self._start(
            image, prompt, options, compat, timeout_s, priority, stream=True
        )
        return stream

    async def rank(
        self,
        image: ImageSources,
        prompt: str,
        candidates: Sequence[str],
        *,
        length_penalty: float | None = None,
        timeout_s: float | None = None,
        priority: Priority = "interactive",
    ) -> tuple[RankedCandidate, ...]:
        """As `Client.rank`. Cancelling the task cancels the ranking."""
        options = ranking_options(candidates, length_penalty)
        answer = await self.ask(
            image, prompt, options=options, timeout_s=timeout_s, priority=priority
        )
        return answer.ranking

    @property
    def lavis(self) -> AsyncLavis:
        """LAVIS's calls, with LAVIS's names and defaults."""
        return AsyncLavis(self)

    async def _start(
        self,
        image: ImageSources,
        prompt: str,
        options: Options,
        compat: str | None,
        timeout_s: float | None,
        priority: Priority,
        *,
        stream: bool,
    ) -> tuple[AsyncAnswerStream, Preset | None]:
        """Sends the question; the preset is the one that `compat` names."""
        deadline = Deadline(self.timeout_s if timeout_s is None else timeout_s)
        contract = self._contract or await self._ask_contract(deadline)
        pixels = await asyncio.to_thread(pixels_of_request, image, contract)
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
        return AsyncAnswerStream(send, reader, deadline), preset


class AsyncAnswerStream:
    """Iterates over the pieces of an answer; as `AnswerStream`."""

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
        self._responses = self._receive()
        self._answer: Answer | None = None

    async def __aenter__(self) -> Self:
        return self

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
        if self._answer is not None:
            raise StopAsyncIteration
        try:
            async for response in self._responses:
                text = self._reader.feed(response)
                if text:
                    return text
            self._answer = self._reader.answer()
        except asyncio.CancelledError:
            # gRPC raises the task's own exception for a cancelled call as well.
            if not self._call.cancelled() or _task_is_cancelled():
                raise
            raise CancelledError("the answer was cancelled") from None
        except IblipError:
            self._call.cancel()  # nobody will read the rest
            raise
        raise StopAsyncIteration

    async def _receive(self) -> AsyncIterator[Any]:
        """The responses; sends again what never reached a server."""
        while True:
            try:
                async for response in self._call:
                    yield response
                return
            except grpc.RpcError as error:
                fault = error_from_rpc(error, self._reader.url)
                if not waits_for(fault, self._deadline):
                    raise fault from error
            await asyncio.sleep(RECONNECT_POLL_S)
            self._call = self._send(fault)

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
        self._call.cancel()


def _task_is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
