"""The ASGI application: paths, and what each answers."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from iblip.engines.language_model.types import Answer, Priority
from iblip.export.errors import IblipError, OptionError
from iblip.serving.client.asynchronous import AsyncAnswerStream
from iblip.serving.client.compat import trim_answer
from iblip.serving.gateway.access_log import GONE, AccessLog, Entry, entry_of
from iblip.serving.gateway.bodies import HELD, Room
from iblip.serving.gateway.callers import Caller, Callers
from iblip.serving.gateway.completions import Writer, completions_of, usage
from iblip.serving.gateway.conversation import prompt_from_turns, turns_from_messages
from iblip.serving.gateway.draining import Draining
from iblip.serving.gateway.errors import (
    MethodError,
    ParameterError,
    TooManyError,
    UnknownPathError,
    error_object,
    headers_of,
    refusal_of,
)
from iblip.serving.gateway.images import Images
from iblip.serving.gateway.metrics import Metrics
from iblip.serving.gateway.openapi import openapi_document
from iblip.serving.gateway.options import MIB, GatewayOptions
from iblip.serving.gateway.page import asks_for_page, page_response
from iblip.serving.gateway.parameters import Asked, parameter_of, read_parameters
from iblip.serving.gateway.servers import ServedModel, ServedModels
from iblip.serving.gateway.tracing import traced
from iblip.serving.gateway.watching import CallerGoneError, while_there
from iblip.serving.metrics import TEXT

logger = logging.getLogger(__name__)

EVENTS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
"""Headers of a stream."""

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, kw_only=True)
class Question:
    """A request that can be sent to its server.

    Attributes:
        model: what is asked.
        asked: how.
        given: the names of its parameters.
        prompt: for the server.
        pixels: uint8 `[images, height, width, 3]`.
    """

    model: ServedModel
    asked: Asked
    given: Mapping[str, None]
    prompt: str
    pixels: npt.NDArray[np.uint8]

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `AsyncClient.ask`, apart from image and prompt."""
        priority: Priority = self.asked.priority
        arguments: dict[str, Any] = {
            "options": self.asked.options,
            "compat": self.asked.compat,
            "priority": priority,
        }
        if self.asked.timeout_s is not None:
            arguments["timeout"] = replace(self.model.client.timeout, total=self.asked.timeout_s)
        return arguments


class Gateway:
    """Answers chat completions. An ASGI application for one path.

    Args:
        models: what is served.
        callers: who may ask.
        options: what they may do.
    """

    def __init__(self, models: ServedModels, callers: Callers, options: GatewayOptions) -> None:
        self.models, self.callers, self.metrics = models, callers, Metrics()
        self._options = options
        self._images = Images(options.image_urls)
        self._room = Room(options.max_body_mib * MIB)

    async def close(self) -> None:
        """Ends the threads and closes the connections."""
        self._images.close()
        await self.models.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        entry, started = entry_of(scope), time.monotonic()
        try:
            caller = self.callers.of(scope)
            with self._admitted(caller, entry), traced(scope) as entry.trace:
                question = await self._question(scope, receive, entry)
                answering = self._stream if question.asked.stream else self._whole
                work = answering(question, send, started)
                del question  # `work` alone has the pixels, and lets go of them
                answer = await while_there(receive, work)
                self._count(answer, entry)
                self.metrics.whole.add(time.monotonic() - started)
        except CallerGoneError as error:
            entry.error = type(error).__name__
        except Exception as error:
            await self._refuse(error, scope, receive, send)
        self.metrics.responses[entry.status or GONE] += 1

    def _admitted(self, caller: Caller, entry: Entry) -> ExitStack:
        """Counts a request as open until it is left."""
        entry.caller = caller.name if self.callers.are_known else ""
        most = self._options.max_open
        if self.metrics.open >= most:
            raise TooManyError(f"{most} requests are open, the most that the gateway takes")
        with ExitStack() as counted:
            counted.enter_context(caller.admitted())
            self.metrics.open += 1
            counted.callback(self._leave)
            return counted.pop_all()

    def _leave(self) -> None:
        self.metrics.open -= 1

    async def _question(self, scope: Scope, receive: Receive, entry: Entry) -> Question:
        """Reads a request; of its body, only pixels and the prompt are left afterwards."""
        with self._room.held() as body:
            try:
                given = await body.read(scope, receive)
            finally:
                entry.request_bytes = body.size
            asked = read_parameters(given)
            entry.model, entry.stream = asked.model[:200], asked.stream
            model = self.models.named(asked.model)
            turns = turns_from_messages(given["messages"])
            return await while_there(
                receive, self._prepared(model, asked, turns, dict.fromkeys(given), entry)
            )

    async def _prepared(
        self, model: ServedModel, asked: Asked, turns: Any, given: Mapping[str, None], entry: Entry
    ) -> Question:
        contract = await model.contract()
        prompt, images = prompt_from_turns(turns, contract)
        entry.images = len(images)
        pixels = await self._images.pixels(images, contract, asked.preprocessing)
        return Question(model=model, asked=asked, given=given, prompt=prompt, pixels=pixels)

    async def _whole(self, question: Question, send: Send, started: float) -> Answer:
        with _naming(question.given):
            answer = await question.model.client.ask(
                question.pixels, question.prompt, **question.arguments
            )
        document = _writer(question).completion(answer)
        await _respond(send, 200, document)
        return answer

    async def _stream(self, question: Question, send: Send, started: float) -> Answer:
        writer, asked = _writer(question), question.asked
        client, arguments = question.model.client, question.arguments
        with _naming(question.given):
            stream = client.stream(question.pixels, question.prompt, **arguments)
            del question  # and with it the pixels: the request has them
            async with stream:
                # What the answer becomes at its end cannot be sent before.
                is_whole = bool(asked.format.is_ranking or stream.preset)
                first = "" if is_whole else await anext(stream, "")
                if is_whole:
                    await stream.answer()
                self.metrics.first.add(time.monotonic() - started)
                events = _Events(send, include_usage=asked.include_usage)
                await events.begin()
                await events.write(writer.chunk("", first=True))
                try:
                    return await self._pieces(stream, first, writer, events, whole=is_whole)
                except IblipError as error:
                    await events.write(error_object(error))
                    await events.end(done=False)
                    raise _ToldError from error

    async def _pieces(
        self,
        stream: AsyncAnswerStream,
        first: str,
        writer: Writer,
        events: _Events,
        *,
        whole: bool,
    ) -> Answer:
        """Writes the rest of a stream, and its end."""
        if first:
            await events.write(writer.chunk(first))
        if not whole:
            async for text in stream:
                await events.write(writer.chunk(text))
        answer = trim_answer(await stream.answer(), stream.preset)
        for chunk in writer.ends(answer, whole=whole):
            await events.write(chunk)
        if events.include_usage:
            await events.write(writer.usage_chunk(answer))
        await events.end()
        return answer

    def _count(self, answer: Answer, entry: Entry) -> None:
        counted = usage(answer)
        entry.prompt_tokens, entry.completion_tokens = (
            counted["prompt_tokens"],
            counted["completion_tokens"],
        )
        entry.finish_reason = ",".join(one.finish_reason for one in completions_of(answer))
        for kind in ("prompt", "completion"):
            self.metrics.tokens[kind] += counted[f"{kind}_tokens"]

    async def _refuse(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        entry = entry_of(scope)
        if isinstance(error, _ToldError):
            entry.error = type(error.__cause__).__name__
            return
        entry.error = type(error).__name__
        if not isinstance(error, IblipError):
            logger.error("request %s failed", entry.id, exc_info=error)
        if entry.status == 0:
            await error_response(error)(scope, receive, send)
        else:  # what was sent is not whole, and ends without saying so
            raise error


class _ToldError(Exception):
    """The stream has been told what went wrong."""


@contextmanager
def _naming(given: Mapping[str, None]) -> Iterator[None]:
    """Turns an error about options into one that names the parameter of the request."""
    try:
        yield
    except ParameterError:
        raise
    except OptionError as error:
        raise ParameterError(str(error), parameter_of(error, given)) from error


class _Events:
    """A stream of server-sent events, each a document of JSON."""

    def __init__(self, send: Send, *, include_usage: bool) -> None:
        self._send = send
        self.include_usage = include_usage

    async def begin(self) -> None:
        headers = [(name.encode(), value.encode()) for name, value in EVENTS.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, document: dict[str, Any]) -> None:
        if self.include_usage and "choices" in document:
            document = {"usage": None, **document}
        await self._body(b"data: " + _encoded(document) + b"\n\n", more=True)

    async def end(self, *, done: bool = True) -> None:
        await self._body(DONE if done else b"", more=False)

    async def _body(self, data: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


def _writer(question: Question) -> Writer:
    asked = question.asked
    return Writer.new(asked.model, question.model.tokens, asked.format)


def _encoded(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


async def _respond(send: Send, status: int, document: Mapping[str, Any]) -> None:
    data = _encoded(document)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(data)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data, "more_body": False})


def error_response(error: Exception) -> Response:
    """What a caller is told of an error."""
    status, headers = refusal_of(error).status, headers_of(error)
    if status in (408, 413):
        headers["connection"] = "close"  # the rest of the body may not have been read
    # In ASCII: what a caller has written, and is told again, may be half of a surrogate pair.
    content = json.dumps(error_object(error))
    return Response(content, status_code=status, headers=headers, media_type="application/json")


def app_of(
    models: ServedModels,
    options: GatewayOptions,
    callers: Callers | None = None,
    write_log: Callable[[str], object] | None = None,
) -> ASGIApp:
    """The application.

    Args:
        models: the servers behind it.
        options: what callers may do.
        callers: who may ask; `None` is anybody.
        write_log: given a line for each request; `None` keeps no log.
    """
    callers = callers or Callers()
    gateway = Gateway(models, callers, options)
    names = [model.name for model in models]
    document = openapi_document(names, needs_key=callers.are_known)

    async def listed(request: Request) -> Response:
        callers.of(request.scope)
        return JSONResponse({"object": "list", "data": [_model(one) for one in models]})

    async def described(request: Request) -> Response:
        callers.of(request.scope)
        return JSONResponse(_model(models.named(request.path_params["model"])))

    async def health(request: Request) -> Response:
        faults = await models.faults()
        states = {name: "ready" if fault is None else str(fault) for name, fault in faults.items()}
        is_ready = not any(faults.values())
        content = {"status": "ready" if is_ready else "unavailable", "models": states}
        return JSONResponse(content, status_code=200 if is_ready else 503)

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(gateway.metrics.text(), media_type=TEXT)

    async def published(request: Request) -> Response:
        return JSONResponse(document)

    async def start(request: Request) -> Response:
        if options.page and asks_for_page(request):
            return page_response(request)
        paths = [route.path for route in app.routes if isinstance(route, Route)]
        return JSONResponse({"name": "iblip gateway", "paths": paths})

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", gateway, methods=["POST"]),
            Route("/v1/models", listed),
            Route("/v1/models/{model:path}", described),
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/openapi.json", published),
            Route("/", start),
        ],
        exception_handlers={
            IblipError: _handled,
            HTTPException: _handled,
            Exception: _handled,
        },
        lifespan=_lifespan(gateway),
    )
    answering: ASGIApp = app
    if options.cors_origins:
        answering = CORSMiddleware(
            app,
            allow_origins=options.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=("x-request-id", "retry-after"),
        )
    return AccessLog(Draining(answering, HELD * options.max_body_mib * MIB), write_log)


async def _handled(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        path = request.url.path[:200]
        told: Exception = UnknownPathError(f"there is nothing at {path}")
        if error.status_code == 405:
            told = MethodError(f"{request.method} is not a method of {path}")
        response = error_response(told)
        response.headers.update(error.headers or {})
        return response
    entry_of(request.scope).error = type(error).__name__
    return error_response(error)


def _lifespan(gateway: Gateway) -> Any:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await gateway.close()

    return lifespan


def _model(model: ServedModel) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": 0, "owned_by": "iblip"}
