"""gRPC's failures as the errors of `serving.client.errors`. Does no I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from iblip.export.errors import DeadlineError, EngineError, IblipError, InputError
from iblip.serving.client.errors import (
    CancelledError,
    ClientError,
    DisconnectedError,
    NoTLSError,
    NotReadyError,
    NotServedError,
    RefusedError,
    UnknownHostError,
    UnreachableError,
    UntrustedError,
)
from iblip.serving.client.patience import LATE, LONGEST_TIMEOUT_S
from iblip.serving.wire.errors import TRITON_PHRASES, error_from_text

Maker = Callable[[str], IblipError]

_ENSEMBLE = re.compile(r"^(?:\[request id: [^\]]*\] )?in ensemble '[^']*', ")

_STOPPING = ("erver is stopping", "engine is closed")
"""What Triton and this project's models say of requests that a server did not finish."""

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
    *((phrase, NotReadyError) for phrase in _STOPPING),
    ("has no available versions", NotReadyError),
    ("is not ready", NotReadyError),
    ("unknown model", NotServedError),
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

CANCELLED = "the answer was cancelled"

CLOSED = (
    "the server at {url} closes every connection before anything is said. An HTTP service does so: "
    "give the port of gRPC, which is 8001 unless `iblip serve` printed another. So does a server "
    "that speaks TLS to clients without tls= (--tls-ca), and one with mutual TLS to clients "
    "without a certificate that it trusts (--tls-cert, --tls-key)."
)
"""It does not say why, and may also be a proxy whose server is down: worth waiting for."""

NOT_GRPC = (
    "what answers at {url} does not speak gRPC. An HTTP service does not: give the port of gRPC, "
    "which is 8001 unless `iblip serve` printed another. ({text})"
)

_MESSAGES: Mapping[type[IblipError], str] = {
    UnknownHostError: "the host of {url} cannot be found ({text}). Check its spelling, and DNS.",
    NoTLSError: "the server at {url} does not speak TLS. Leave out tls= (--tls, --tls-ca).",
    UntrustedError: "the certificate of the server at {url} is not trusted ({text}). Give its "
    "authority with TLS(authorities=…) (--tls-ca), and the name in it with server_name "
    "(--tls-server-name) where it is not the address.",
    RefusedError: "the server at {url} wants a token: another, or one at all. Give it with token= "
    "(--token-file). ({text})",
    UnreachableError: "no server answers at {url} ({text}). `iblip serve DIR` starts one.",
    NotReadyError: "the server at {url} is not ready: it is starting or stopping ({text}). Try "
    "again later.",
    DisconnectedError: "the server at {url} went away before the answer was complete ({text})",
    NotServedError: "the server at {url} does not serve this model: {text}",
    CancelledError: CANCELLED,
    DeadlineError: LATE,
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
    fault = error_from_status(error.code().name, error.details() or "", url=url)
    _read_hint(fault, error.trailing_metadata() or ())
    return fault


def _read_hint(fault: IblipError, metadata: Iterable[Sequence[Any]]) -> None:
    """Reads when the server, or a proxy in front of it, says to come back.

    gRPC's own header has milliseconds, and a negative number for never; HTTP's has seconds, or a
    date, which is passed over.
    """
    headers = {str(pair[0]).lower(): str(pair[1]) for pair in metadata}
    for name, unit_s in (("grpc-retry-pushback-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit_s
        except ValueError:
            continue
        if seconds < 0:
            fault.is_retryable = False
        elif seconds < LONGEST_TIMEOUT_S:  # neither infinity nor no number
            fault.retry_after_s = seconds
        return


def error_from_status(code: str, details: str, *, url: str) -> IblipError:
    """The error that a gRPC status stands for.

    Args:
        code: the name of the status (`"INVALID_ARGUMENT"`).
        details: the status's text; an error kind at its head, put there by the server, decides.
        url: of the server, for the message.
    """
    tagged = error_from_text(details)
    if isinstance(tagged, DeadlineError):
        return DeadlineError(LATE)
    if tagged is not None and not any(phrase in details for phrase in _STOPPING):
        return tagged
    text = _ENSEMBLE.sub("", details).strip()
    makers = (maker for phrase, maker in _PHRASES if phrase in text)
    make = next(makers, _CODES.get(code, ClientError))
    error = make(text)
    if isinstance(error, UnreachableError):
        text = text.rsplit(": ", 1)[-1].rstrip("]")  # gRPC lists every attempt; the last says why
        if text == "Socket closed":
            return make(CLOSED.format(url=url))
        if "Expected SETTINGS frame" in text:
            return make(NOT_GRPC.format(url=url, text=text))
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
