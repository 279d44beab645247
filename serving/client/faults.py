"""gRPC's failures as the errors of `serving.client.errors`. Does no I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from iblip.export.errors import DeadlineError, EngineError, IblipError, InputError
from iblip.serving.client.errors import (
    CancelledError,
    ClientError,
    DisconnectedError,
    NotServedError,
    UnknownHostError,
    UnreachableError,
)
from iblip.serving.wire import TRITON_PHRASES, error_from_text

Maker = Callable[[str], IblipError]

_ENSEMBLE = re.compile(r"^(?:\[request id: [^\]]*\] )?in ensemble '[^']*', ")

# Phrases of Triton's own messages, from any step: its codes do not distinguish these.
_PHRASES: tuple[tuple[str, Maker], ...] = (
    ("failed to connect", UnreachableError),
    ("errors resolving", UnknownHostError),
    ("DNS resolution failed", UnknownHostError),
    *TRITON_PHRASES.items(),
    ("unknown model", NotServedError),
    ("is not ready", NotServedError),
    ("unexpected shape for input", InputError),
    ("data-type is", InputError),
)

_CODES: Mapping[str, Maker] = {
    "CANCELLED": CancelledError,
    "DEADLINE_EXCEEDED": DeadlineError,
    "INTERNAL": EngineError,
    "INVALID_ARGUMENT": InputError,
    "NOT_FOUND": NotServedError,
    "RESOURCE_EXHAUSTED": InputError,
    "UNAVAILABLE": DisconnectedError,
    "UNIMPLEMENTED": NotServedError,
}

_MESSAGES: Mapping[type[IblipError], str] = {
    UnknownHostError: "the host of {url} cannot be found ({text}). Check its spelling, and DNS.",
    UnreachableError: "no server answers at {url} ({text}). `iblip serve DIR` starts one.",
    DisconnectedError: "the server at {url} went away before the answer was complete ({text})",
    NotServedError: "the server at {url} does not serve this model: {text}",
    CancelledError: "the answer was cancelled",
    DeadlineError: "the answer was not finished by its deadline",
    ClientError: "the server at {url} failed: {text}",
    EngineError: "the server at {url} failed: {text}",
}
"""The message for users; other kinds keep the server's own text."""


def error_from_rpc(error: Any, url: str) -> IblipError:
    """The error that a failed gRPC call stands for.

    Args:
        error: `grpc.RpcError`, of a synchronous or an asyncio channel.
        url: of the server, for the message.
    """
    return error_from_status(error.code().name, error.details() or "", url=url)


def error_from_status(code: str, details: str, *, url: str) -> IblipError:
    """The error that a gRPC status stands for.

    Args:
        code: the name of the status (`"INVALID_ARGUMENT"`).
        details: the status's text; an error kind at its head, put there by the server, decides.
        url: of the server, for the message.
    """
    tagged = error_from_text(details)
    if tagged is not None:
        return tagged
    text = _ENSEMBLE.sub("", details).strip()
    makers = (maker for phrase, maker in _PHRASES if phrase in text)
    make = next(makers, _CODES.get(code, ClientError))
    error = make(text)
    if isinstance(error, UnreachableError):
        text = text.rsplit(": ", 1)[-1].rstrip("]")  # gRPC lists every attempt; the last says why
    message = _MESSAGES.get(type(error), "{text}")
    return make(message.format(url=url, text=text or code))
