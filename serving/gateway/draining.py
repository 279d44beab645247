"""Reads what is left of a body before it is refused.

A server that closes a connection while its caller is still sending breaks the caller's pipe, and
most callers then never read why.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

DRAIN_S = 5.0
"""Seconds for the rest of a body. Whoever takes longer finds the connection closed."""

SLOW = 408
"""The status of a body that has not arrived in its time: the rest would not, either."""


class Draining:
    """An ASGI application whose refusals are sent once the body has been read.

    Args:
        app: the application.
        most_bytes: of a body's rest, which is thrown away.
    """

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self._app, self._most = app, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(scope, receive)

        async def send_drained(message: Message) -> None:
            status = message.get("status", 0)
            if status >= 400 and status != SLOW:
                await body.drain(self._most)
            await send(message)

        await self._app(scope, body.receive, send_drained)


class _Body:
    """A body that may be left unread."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        headers = dict(scope["headers"])
        self._receive = receive
        self._length = headers.get(b"content-length", b"")
        # Such a caller waits before it sends the body, until somebody begins to read it.
        self._is_sent = headers.get(b"expect", b"").lower() != b"100-continue"
        self._is_read = False

    async def receive(self) -> Message:
        """See ASGI."""
        self._is_sent = True
        message = await self._receive()
        self._is_read = not message.get("more_body", False)
        return message

    async def drain(self, most: int) -> None:
        """Throws away the rest, if it is no more than `most` bytes and comes in time."""
        if not self._is_sent or (self._length.isdigit() and int(self._length[:20]) > most):
            return
        try:
            async with asyncio.timeout(DRAIN_S):
                while not self._is_read and most > 0:
                    most -= len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass
