"""From gRPC's failures to the errors of `serving.client.errors`. Knows nothing of I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from iblip.export.errors import DeadlineError, EngineError, IblipError, InputError
from iblip.serving.client.errors import (
    CancelledError,
    ClientError,
    DisconnectedError,
    NotServedError,
    QueueFullError,
    UnreachableError,
)
from iblip.serving.wire import error_from_text

Maker = Callable[[str], IblipError]

_ENSEMBLE = re.compile(r"^(?:\[request id: [^\]]*\] )?in ensemble '[^']*', ")

# What Triton itself says, wherever in the pipeline: its codes do not tell these apart.
_WORDS: tuple[tuple[str, Maker], ...] = (
    ("failed to connect", UnreachableError),
    ("DNS resolution failed", UnreachableError),
    ("timeout expired", DeadlineError),
    ("maximum queue size", QueueFullError),
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
    UnreachableError: "no server answers at {url} ({text}). `iblip serve DIR` starts one.",
    DisconnectedError: "the server at {url} went away before the answer was whole ({text})",
    NotServedError: "the server at {url} does not serve this model: {text}",
    CancelledError: "the answer was cancelled",
    DeadlineError: "the answer was not finished by its deadline",
    ClientError: "the server at {url} failed: {text}",
    EngineError: "the server at {url} failed: {text}",
}
"""What people are told; of other kinds, the server's own text."""


def error_from_status(code: str, details: str, *, url: str) -> IblipError:
    """The error that a gRPC status stands for.

    Args:
        code: the name of the status (`"INVALID_ARGUMENT"`).
        details: what came with it; a kind that the server put at its head decides.
        url: of the server, for the message.
    """
    told = error_from_text(details)
    if told is not None:
        return told
    text = _ENSEMBLE.sub("", details).strip()
    words = (maker for word, maker in _WORDS if word in text)
    make = next(words, _CODES.get(code, ClientError))
    error = make(text)
    if isinstance(error, UnreachableError):
        text = text.rsplit(": ", 1)[-1]  # gRPC tells every attempt; the last words say why
    message = _MESSAGES.get(type(error), "{text}")
    return make(message.format(url=url, text=text or code))
