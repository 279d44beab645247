"""The HTTP server before Triton: takes each request whole, checks it, passes it on, streams back.

A request reaches Triton in one piece, with the length of its body, and on a connection of its own,
whatever way it came: Triton 2.51 puts the chunks of a body on its stack (CVE-2025-23310).
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import secrets
import signal
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import unquote

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from iblip.serving.server.wall.limits import (
    HEADER_LENGTH,
    Limits,
    RefusedError,
    check,
    decompressed,
    json_length,
    takes_tensors,
    too_large,
)
from iblip.serving.wire.names import CANCEL as CANCEL_NAME
from iblip.serving.wire.names import CANCEL_KEY, UNARY

BODY_S = 60.0
"""Seconds in which a request's body must have arrived."""

HELD = 8
"""Bodies of the largest size that are held at once, decompressed or not; then callers must wait."""

AT_ONCE = 512
"""Requests to one port of Triton's at a time; more wait. It may have 1,024 descriptors in all."""

IDLE_S = 75.0
"""Seconds that a connection may wait for its next request."""

LINGER_S = 2.0
"""Seconds in which the rest of a refused body is read, so that its sender gets to the refusal."""

SERVER = "iblip"

ONE_ANSWER = f"/v2/models/{UNARY}/"
"""Requests whose callers Triton 2.51 does not tell from those that have gone."""

CANCEL_HEADER = CANCEL_KEY
"""Forwarded by Triton as the parameter of that name: a secret by which the request is cancelled
where its caller goes."""

GENERATE = re.compile(r"/v2/models/[^/]+/(versions/[^/]+/)?generate(?P<stream>_stream)?")
"""Requests of which Triton 2.51 forwards no header: key and caller go into the JSON."""

CANCEL = URL(f"http://triton{ONE_ANSWER}generate")
CANCEL_TRIES, CANCEL_PAUSE_S = 10, 0.3
"""Of a cancellation, which may overtake the request that it is for."""

OF_CONNECTION = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that are not passed on (RFC 9110, 7.6.1)."""

OF_BODY = frozenset({"content-encoding", "content-length", "expect", HEADER_LENGTH.lower()})
"""Headers of a request that hold of its body as it came, and not as Triton gets it."""


@dataclass(frozen=True, kw_only=True)
class Listener:
    """A port, and where what it takes is passed on to.

    Attributes:
        port: bound.
        target: the path of the socket that Triton listens on.
    """

    port: socket.socket
    target: str


def serve(listeners: Iterable[Listener], limits: Limits, caller_header: str = "") -> None:
    """Passes requests on until the process ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it ends with Triton, which may have work to finish
    asyncio.run(serving(listeners, limits, caller_header))


async def serving(listeners: Iterable[Listener], limits: Limits, caller_header: str = "") -> None:
    """Listens at every address and passes requests on, until it is cancelled."""
    room, checking = Room(HELD * limits.body), asyncio.Lock()
    async with contextlib.AsyncExitStack() as sessions:
        for listener in listeners:
            session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(listener.target, limit=AT_ONCE, force_close=True),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
                skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            )
            gate = Gate(
                session=await sessions.enter_async_context(session),
                limits=limits,
                room=room,
                checking=checking,
                caller_header=caller_header,
            )
            server = web.Server(
                gate.answer,
                handler_cancellation=True,  # a caller that has gone is gone for Triton too
                access_log=None,
                auto_decompress=False,
                keepalive_timeout=IDLE_S,
                lingering_time=LINGER_S,
            )
            runner = web.ServerRunner(server)
            await runner.setup()
            await web.SockSite(runner, listener.port).start()
        await asyncio.Event().wait()


class Room:
    """Bytes of bodies that may be held at once, by all requests."""

    def __init__(self, size: int) -> None:
        self._free = size

    @contextlib.contextmanager
    def taken(self) -> Iterator[Callable[[int], None]]:
        """Yields what takes so many bytes more, or raises `RefusedError`, until the block ends."""
        held = 0

        def take(size: int) -> None:
            nonlocal held
            if size > self._free:
                raise RefusedError(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    "the server holds as many bodies of requests as it may; ask again",
                )
            self._free -= size
            held += size

        try:
            yield take
        finally:
            self._free += held


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The way from one port to Triton.

    Attributes:
        session: of connections to Triton.
        limits: of a request.
        room: of all requests at all ports.
        checking: held while JSON is read: its values take memory until it has been.
        caller_header: by which callers are told apart, if they are.
        cancelling: what is being cancelled.
    """

    session: aiohttp.ClientSession
    limits: Limits
    room: Room
    checking: asyncio.Lock
    caller_header: str
    cancelling: set[asyncio.Task[None]] = field(default_factory=set)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answers a request: with Triton's response, or with a refusal in Triton's form."""
        try:
            with self.room.taken() as take:
                headers, body, names = await self._admit(request, take)
                return await self._pass_on(request, headers, body, names)
        except RefusedError as error:
            return _refusal(error.status, str(error))
        except web.RequestPayloadError as error:
            return _refusal(HTTPStatus.BAD_REQUEST, f"the body cannot be read: {error}")
        except aiohttp.ClientConnectorError:
            return _refusal(
                HTTPStatus.SERVICE_UNAVAILABLE, "the server does not listen yet; ask again"
            )
        except aiohttp.ClientError as error:
            return _refusal(HTTPStatus.BAD_GATEWAY, f"the server ended the request: {error}")

    async def _admit(
        self, request: web.BaseRequest, take: Callable[[int], None]
    ) -> tuple[CIMultiDict[str], bytes, frozenset[str]]:
        """The headers and body that Triton gets, and the names in the body's JSON."""
        path = request.raw_path
        if not re.fullmatch(r"/[!-~]*", path) or "#" in path:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the address is not a path in plain ASCII")
        body = await _body(request, self.limits.body, take)
        encoding = request.headers.get("Content-Encoding", "").strip().lower()
        if encoding and body:
            body = await asyncio.to_thread(decompressed, body, encoding, self.limits.body)
            take(len(body))
        headers = _end_to_end(request.headers, of_body=False)
        size = len(body)
        if takes_tensors(path) and HEADER_LENGTH in request.headers:
            size = json_length(request.headers.getall(HEADER_LENGTH), len(body))
            headers[HEADER_LENGTH] = str(size)
        async with self.checking:
            names = await asyncio.to_thread(check, body[:size], len(body), self.limits)
        return headers, body, names

    async def _pass_on(
        self,
        request: web.BaseRequest,
        headers: CIMultiDict[str],
        body: bytes,
        names: frozenset[str],
    ) -> web.StreamResponse:
        key = ""
        one_answer = request.raw_path.startswith(ONE_ANSWER)
        generate = GENERATE.fullmatch(unquote(request.raw_path.partition("?")[0]))
        if generate and names:
            added = self._caller(request.headers, names)
            own = names & {CANCEL_KEY, CANCEL_NAME}  # by which the caller cancels
            if one_answer and not generate["stream"] and not own:
                key = added[CANCEL_KEY] = secrets.token_hex(16)
            body = _with_fields(body, added)
        elif one_answer and not generate:
            key = headers[CANCEL_HEADER] = secrets.token_hex(16)
        try:
            return await self._streamed(request, headers, body)
        except asyncio.CancelledError:
            if key:
                task = asyncio.create_task(self._cancel(key, headers))
                self.cancelling.add(task)
                task.add_done_callback(self.cancelling.discard)
            raise

    async def _cancel(self, key: str, headers: CIMultiDict[str]) -> None:
        """Ends the request of a caller that has gone, in its name."""
        own = CIMultiDict(headers)
        for name in ("Content-Type", HEADER_LENGTH, CANCEL_HEADER):
            own.popall(name, None)
        body = json.dumps({"cancel": key}).encode()
        with contextlib.suppress(aiohttp.ClientError, ValueError, KeyError):
            for _ in range(CANCEL_TRIES):
                async with self.session.post(CANCEL, headers=own, data=body) as response:
                    finish = json.loads(await response.read())["finish"]
                if json.loads(finish)["cancelled"]:
                    return
                await asyncio.sleep(CANCEL_PAUSE_S)

    def _caller(self, headers: CIMultiDictProxy[str], names: frozenset[str]) -> dict[str, str]:
        """The field that says who asks: what the header says, and never what the JSON does."""
        wanted = self.caller_header.lower()
        if not wanted:
            return {}
        given = headers.getall(wanted, [])
        if len(given) > 1 or any(name.lower() == wanted for name in names):
            raise RefusedError(
                HTTPStatus.BAD_REQUEST,
                f"{wanted} says who asks, and is a header: expected it once, and not in the JSON",
            )
        return {wanted: given[0]} if given else {}

    async def _streamed(
        self, request: web.BaseRequest, headers: CIMultiDict[str], body: bytes
    ) -> web.StreamResponse:
        async with self.session.request(
            request.method,
            URL(f"http://triton{request.raw_path}", encoded=True),
            headers=headers,
            data=io.BytesIO(body) if body else None,
            allow_redirects=False,
        ) as upstream:
            response = web.StreamResponse(
                status=upstream.status,
                reason=upstream.reason,
                headers=_end_to_end(upstream.headers, of_body=True),
            )
            response.headers["Server"] = SERVER
            await response.prepare(request)
            try:
                async for part in upstream.content.iter_any():
                    await response.write(part)
                await response.write_eof()
            except aiohttp.ClientError:  # what was sent looks whole unless the connection breaks
                if request.transport is not None:
                    request.transport.abort()
            return response


def _with_fields(body: bytes, fields: Mapping[str, str]) -> bytes:
    """The JSON of an object that is not empty, with these as its first fields."""
    start = body.index(b"{") + 1
    added = "".join(f"{json.dumps(name)}:{json.dumps(text)}," for name, text in fields.items())
    return body[:start] + added.encode() + body[start:]


async def _body(request: web.BaseRequest, limit: int, take: Callable[[int], None]) -> bytes:
    if (request.content_length or 0) > limit:
        raise too_large("body", limit)
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.content.iter_any():
                take(len(part))
                body += part
                if len(body) > limit:
                    raise too_large("body", limit)
    except TimeoutError:
        raise RefusedError(
            HTTPStatus.REQUEST_TIMEOUT, f"the body did not arrive in {BODY_S:g} seconds"
        ) from None
    return bytes(body)


def _end_to_end(headers: CIMultiDictProxy[str], *, of_body: bool) -> CIMultiDict[str]:
    """Those headers that are not of one connection; with those that say how long a body is."""
    left_out = OF_CONNECTION if of_body else OF_CONNECTION | OF_BODY
    named = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    kept = CIMultiDict[str]()
    for name, value in headers.items():
        if name.lower() not in left_out | named:
            kept.add(name, value)
    return kept


def _refusal(status: HTTPStatus, reason: str) -> web.Response:
    # What has been read of a body is all that will be, so the connection ends.
    response = web.json_response({"error": reason}, status=status, headers={"Server": SERVER})
    response.force_close()
    return response
