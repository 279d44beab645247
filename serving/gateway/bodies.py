"""The body of a request, read within limits of size, of time, and of all bodies together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.types import Receive, Scope

from iblip.export.errors import InputError
from iblip.export.messages import kind_of
from iblip.export.system.json_text import parse_json
from iblip.serving.gateway.errors import (
    MediaTypeError,
    NoRoomError,
    ParameterError,
    SlowBodyError,
    TooLargeError,
)
from iblip.serving.gateway.watching import CallerGoneError

BODY_S = 60.0
"""Seconds in which a body must arrive."""

HELD = 4
"""Bodies of the largest size that may be held at once, until their images are decoded."""

MAX_BRACKETS = 100_000
"""Arrays and objects in a body, also where a string has their brackets: each takes Python more
memory than it has bytes."""


class Room:
    """Bytes of bodies that may be held at once.

    Args:
        largest: bytes of one body.
    """

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self._free = HELD * largest

    @contextmanager
    def held(self) -> Iterator[Body]:
        """A body, whose bytes count until the block ends."""
        body = Body(self)
        try:
            yield body
        finally:
            self._free += body.size

    def take(self, size: int) -> None:
        """Takes so many bytes.

        Raises:
            NoRoomError: there are not so many.
        """
        if size > self._free:
            raise NoRoomError("the gateway holds as many bodies of requests as it may; ask again")
        self._free -= size


class Body:
    """One body, as far as it has been read.

    Attributes:
        size: bytes that are held.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self.size = 0

    async def read(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        """The object of JSON that a body is.

        Raises:
            MediaTypeError: it is not declared as JSON. A page in a browser can send anything else
                to any address without being asked.
            TooLargeError, NoRoomError, SlowBodyError: it is too large, or too slow.
            InputError: it is not JSON.
            CallerGoneError: the caller left while sending it.
        """
        headers = dict(scope["headers"])
        declared = headers.get(b"content-type", b"").decode("latin-1")
        if declared.partition(";")[0].strip().lower() != "application/json":
            raise MediaTypeError(f"content-type is {declared[:100]!r}; expected application/json")
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise MediaTypeError("the body is compressed; send it as it is")
        length = headers.get(b"content-length", b"")
        if length.isdigit() and len(length) < 20 and int(length) > self._room.largest:
            raise self._too_large()
        try:
            async with asyncio.timeout(BODY_S):
                data = await self._bytes(receive)
        except TimeoutError:
            raise SlowBodyError(f"the body did not arrive in {BODY_S:g} seconds") from None
        return _object(data)

    async def _bytes(self, receive: Receive) -> bytearray:
        data = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise CallerGoneError
            part = message.get("body", b"")
            self._room.take(len(part))
            self.size += len(part)
            data += part
            if len(data) > self._room.largest:
                raise self._too_large()
            if not message.get("more_body", False):
                return data

    def _too_large(self) -> TooLargeError:
        return TooLargeError(
            f"the body has more than {self._room.largest} bytes, the most accepted (--max-body)"
        )


def _object(data: bytearray) -> dict[str, Any]:
    if data.count(b"[") + data.count(b"{") > MAX_BRACKETS:
        raise InputError(f"the body has more than {MAX_BRACKETS} arrays and objects")
    try:
        body = parse_json(bytes(data))
    except ValueError as error:
        raise ParameterError(f"the body is not JSON: {error}", None) from None
    if not isinstance(body, dict):
        raise ParameterError(f"the body is {kind_of(body)}; expected an object", None)
    return body
