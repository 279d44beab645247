"""From gRPC's failures to the errors of `serving.client.errors`. Knows nothing of I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from export.errors import DeadlineError, EngineError, IblipError, InputError
from serving.client.errors import (
    CancelledError,
    ClientError,
    DisconnectedError,
    NotServedError,
    QueueFullError,
    UnreachableError,
)
from serving.wire import error_from_text

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

_HINTS: Mapping[type[IblipError], str] = {
    UnreachableError: "Is it running? `iblip serve DIR` starts one and says its address.",
    DisconnectedError: "Its log says why; ask again once it is back.",
    NotServedError: "Its health: GET /v2/models/instructblip/ready on the HTTP port.",
}


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
    if isinstance(error, ClientError):
        hint = _HINTS.get(type(error), "")
        return make(f"the server at {url}: {text or code}. {hint}".strip())
    if isinstance(error, DeadlineError):
        return make("the answer was not finished by its deadline")
    return error
