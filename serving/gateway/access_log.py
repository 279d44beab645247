"""A line of JSON for each request: who asked what model, and how it ended. No text, no image."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, MutableMapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from iblip.export.messages import printable

GONE = 499
"""Stands for the status where the caller has gone before it was sent one, as in nginx."""

ENTRY = "iblip.entry"
"""Key of a scope for its `Entry`."""

LONGEST_PATH = 200


@dataclass
class Entry:
    """What the log says of a request.

    Attributes:
        id: also the header `x-request-id`.
        status: 0 until there is one.
        caller: the name of the key.
        error: class of what went wrong; empty where nothing did.
        seconds: from its head to the end of the response.
    """

    method: str
    path: str
    client: str
    id: str = field(default_factory=lambda: uuid4().hex)
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))
    status: int = 0
    caller: str = ""
    model: str = ""
    stream: bool = False
    images: int = 0
    request_bytes: int = 0
    response_bytes: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = ""
    error: str = ""
    trace: str = ""
    seconds: float = 0.0

    def line(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))


class AccessLog:
    """Hands each request an `Entry`, and writes it once the request has ended.

    Args:
        app: answers.
        write: given each line; `None` writes none.
    """

    def __init__(self, app: ASGIApp, write: Callable[[str], object] | None) -> None:
        self._app, self._write = app, write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        address = scope.get("client") or ("",)
        entry = scope[ENTRY] = Entry(
            method=scope["method"],
            path=printable(scope["path"][:LONGEST_PATH]),
            client=str(address[0]),
        )
        started = time.monotonic()

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", entry.id.encode()),
                ]
            entry.response_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            entry.seconds = round(time.monotonic() - started, 6)
            entry.status = entry.status or GONE
            if self._write is not None:
                self._write(entry.line())


def entry_of(scope: MutableMapping[str, Any]) -> Entry:
    """The entry of a request."""
    entry: Entry = scope[ENTRY]
    return entry
