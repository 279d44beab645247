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
    NoTLSError,
    NotServedError,
    RefusedError,
    UnknownHostError,
    UnreachableError,
    UntrustedError,
)
from iblip.serving.wire import TRITON_PHRASES, error_from_text

Maker = Callable[[str], IblipError]

_ENSEMBLE = re.compile(r"^(?:\[request id: [^\]]*\] )?in ensemble '[^']*', ")

# Phrases of Triton's own messages, from any step: its codes do not distinguish these.
_PHRASES: tuple[tuple[str, Maker], ...] = (
    ("WRONG_VERSION_NUMBER", NoTLSError),
    ("CERTIFICATE_VERIFY_FAILED", UntrustedError),
    ("Hostname Verification", UntrustedError),
    ("is restricted, expecting header", RefusedError),
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

CLOSED = (
    "the server at {url} closes every connection before anything is said. One that speaks TLS does "
    "so to clients without tls= (--tls-ca), and one with mutual TLS to clients without a "
    "certificate that it trusts (--tls-cert, --tls-key)."
)
"""It does not say why, and may also be a proxy whose server is down: worth waiting for."""

_MESSAGES: Mapping[type[IblipError], str] = {
    UnknownHostError: "the host of {url} cannot be found ({text}). Check its spelling, and DNS.",
    NoTLSError: "the server at {url} does not speak TLS. Leave out tls= (--tls, --tls-ca).",
    UntrustedError: "the certificate of the server at {url} is not trusted ({text}). Give its "
    "authority with TLS(authorities=…) (--tls-ca), and the name in it with server_name "
    "(--tls-server-name) where it is not the address.",
    RefusedError: "the server at {url} wants a token: another, or one at all. Give it with token= "
    "(--token-file). ({text})",
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
        if text == "Socket closed":
            return make(CLOSED.format(url=url))
    if isinstance(error, UntrustedError):
        text = _reason(text)
    message = _MESSAGES.get(type(error), "{text}")
    return make(message.format(url=url, text=text or code))


def _reason(text: str) -> str:
    """Of gRPC's words on a certificate, those that say what is wrong with it."""
    words = (
        text.partition("CERTIFICATE_VERIFY_FAILED: ")[2] or text.rpartition("UNAUTHENTICATED: ")[2]
    )
    return words.removesuffix(": OK").rstrip(".")
