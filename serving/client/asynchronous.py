"""The client for asyncio: as `serving.client.sync`, with `await` and `async for`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]

from iblip.engines.language_model.types import Answer, RankedCandidate
from iblip.export.errors import IblipError
from iblip.export.images import ImageSources
from iblip.serving.client.compat import Options, finished, resolved
from iblip.serving.client.errors import CancelledError
from iblip.serving.client.faults import error_from_status
from iblip.serving.client.lavis import AsyncLavis
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


class AsyncClient:
    """Asks a server about images, in one event loop; arguments as in `Client`.

    ::

        async with AsyncClient("127.0.0.1:8001") as client:
            answer = await client.ask("digits.png", "How many digits are there?")
            async for text in await client.stream("digits.png", "Describe the image."):
                print(text, end="", flush=True)
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
        self._channel = grpc.aio.insecure_channel(url, options=options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._contract: ServerContract | None = None

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
        """Ends the connection, and with it every answer that is still being written."""
        await self._channel.close()

    async def contract(self, *, timeout_s: float | None = None) -> ServerContract:
        """As `Client.contract`."""
        if self._contract is None:
            try:
                response = await self._stub.ModelConfig(
                    config_request(self.model), timeout=timeout_s
                )
            except grpc.RpcError as error:
                raise _fault(error, self.url) from error
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
    ) -> Answer:
        """As `Client.ask`. Cancelling the task cancels the answer."""
        async with await self._asked(
            image, prompt, options, compat, timeout_s, stream=False
        ) as stream:
            answer = await stream.answer()
        return finished(answer, resolved(await self.contract(), options, compat)[1])

    async def stream(
        self,
        image: ImageSources,
        prompt: str,
        *,
        options: Options = GREEDY,
        compat: str | None = None,
        timeout_s: float | None = None,
    ) -> AsyncAnswerStream:
        """As `Client.stream`; the image is decoded in a thread of its own."""
        return await self._asked(image, prompt, options, compat, timeout_s, stream=True)

    async def rank(
        self,
        image: ImageSources,
        prompt: str,
        candidates: Sequence[str],
        *,
        length_penalty: float | None = None,
        timeout_s: float | None = None,
    ) -> tuple[RankedCandidate, ...]:
        """As `Client.rank`. Cancelling the task cancels the ranking."""
        options = ranking_options(candidates, length_penalty)
        answer = await self.ask(image, prompt, options=options, timeout_s=timeout_s)
        return answer.ranking

    @property
    def lavis(self) -> AsyncLavis:
        """LAVIS's calls, with its names and defaults."""
        return AsyncLavis(self)

    async def _asked(
        self,
        image: ImageSources,
        prompt: str,
        options: Options,
        compat: str | None,
        timeout_s: float | None,
        *,
        stream: bool,
    ) -> AsyncAnswerStream:
        deadline = Deadline(self.timeout_s if timeout_s is None else timeout_s)
        contract = await self.contract(timeout_s=deadline.remaining())
        pixels = await asyncio.to_thread(pixels_of_request, image, contract)
        made, _ = resolved(contract, options, compat)
        remaining = deadline.remaining()
        request = question(
            pixels, prompt, made, model=self.model, timeout_s=remaining, stream=stream
        )
        call = self._stub.ModelStreamInfer(iter([request]), timeout=remaining)
        return AsyncAnswerStream(call, AnswerReader(self.url), lambda: self._forget(request.id))

    async def _forget(self, request_id: str) -> None:
        message = iter([cancellation(request_id)])
        with contextlib.suppress(grpc.RpcError):  # gone already, it needs no telling
            async for _ in self._stub.ModelStreamInfer(message, timeout=CANCEL_TIMEOUT_S):
                pass


class AsyncAnswerStream:
    """Iterates over the pieces of an answer; as `AnswerStream`."""

    def __init__(
        self, call: Any, reader: AnswerReader, forget: Callable[[], Awaitable[None]]
    ) -> None:
        self._call = call
        self._reader = reader
        self._forget = forget
        self._responses = aiter(call)
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
        except grpc.RpcError as error:
            raise _fault(error, self._reader.url) from error
        except asyncio.CancelledError:
            # gRPC raises the task's own exception for a cancelled call, too.
            if not self._call.cancelled() or _task_is_cancelled():
                raise
            raise CancelledError("the answer was cancelled") from None
        except IblipError:
            self._call.cancel()  # nothing more of it is wanted
            raise
        raise StopAsyncIteration

    @property
    def text(self) -> str:
        """What has come so far."""
        return self._reader.text

    async def answer(self) -> Answer:
        """The whole answer: iterates to the end where that has not been done."""
        async for _ in self:
            pass
        assert self._answer is not None
        return self._answer

    async def cancel(self) -> None:
        """Stops the answer and returns once its place in the engine is free.

        Iterating on raises `CancelledError`. Harmless after the end.
        """
        if self._call.cancel():
            await self._forget()


def _task_is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _fault(error: Any, url: str) -> IblipError:
    return error_from_status(error.code().name, error.details() or "", url=url)
