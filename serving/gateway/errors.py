"""What the gateway tells a caller when something goes wrong: one table over the error tree."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from iblip.export.errors import (
    ContractError,
    DeadlineError,
    EngineError,
    IblipError,
    InputError,
    OptionError,
    QueueFullError,
    ServingError,
    UsageError,
)
from iblip.serving.client.errors import (
    AccessError,
    CancelledError,
    ProtocolError,
)

RETRY_AFTER_S = 1.0
"""After which to ask again, where the server has not said when."""


class ParameterError(OptionError):
    """A parameter of a request cannot be used.

    Args:
        message: what was given, and what is expected.
        param: its name, or the place in it: `messages[0].content`.
    """

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(message)
        self.param = param


class UnknownKeyError(UsageError):
    """The request has no key, or one that is not in the file."""


class UnknownModelError(UsageError):
    """There is no model of that name."""


class UnknownPathError(UsageError):
    """There is nothing at that path."""


class MethodError(UsageError):
    """The path takes another method."""


class MediaTypeError(UsageError):
    """The body is not declared as JSON."""


class TooLargeError(UsageError):
    """The body is larger than the gateway takes."""


class SlowBodyError(UsageError):
    """The body did not arrive in time."""


class TooManyError(IblipError):
    """The key, or the gateway, has as many requests open as it may.

    Args:
        message: how many.
        retry_after_s: seconds after which to ask again.
    """

    is_retryable = True

    def __init__(self, message: str, retry_after_s: float = RETRY_AFTER_S) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NoRoomError(IblipError):
    """The gateway holds as many bodies as it may."""

    is_retryable = True


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """How an error reaches a caller.

    Attributes:
        status: of HTTP.
        type: OpenAI's word for the kind of error.
        code: a finer word; empty is none.
    """

    status: int
    type: str
    code: str = ""


INVALID = "invalid_request_error"

REFUSALS: Mapping[type[Exception], Refusal] = {
    UnknownKeyError: Refusal(status=401, type="authentication_error", code="invalid_api_key"),
    UnknownModelError: Refusal(status=404, type=INVALID, code="model_not_found"),
    UnknownPathError: Refusal(status=404, type=INVALID, code="unknown_url"),
    MethodError: Refusal(status=405, type=INVALID, code="method_not_allowed"),
    SlowBodyError: Refusal(status=408, type=INVALID, code="request_timeout"),
    TooLargeError: Refusal(status=413, type=INVALID, code="request_too_large"),
    MediaTypeError: Refusal(status=415, type=INVALID, code="unsupported_media_type"),
    OptionError: Refusal(status=400, type=INVALID, code="invalid_value"),
    InputError: Refusal(status=400, type=INVALID, code="invalid_input"),
    ContractError: Refusal(status=400, type=INVALID, code="invalid_input"),
    TooManyError: Refusal(status=429, type="rate_limit_error", code="rate_limit_exceeded"),
    QueueFullError: Refusal(status=429, type="rate_limit_error", code="queue_full"),
    NoRoomError: Refusal(status=503, type="server_error", code="overloaded"),
    AccessError: Refusal(status=502, type="server_error", code="bad_gateway"),
    ProtocolError: Refusal(status=502, type="server_error", code="bad_gateway"),
    CancelledError: Refusal(status=503, type="server_error", code="cancelled"),
    ServingError: Refusal(status=503, type="server_error", code="unavailable"),
    DeadlineError: Refusal(status=504, type="server_error", code="timeout"),
    EngineError: Refusal(status=500, type="server_error", code="engine_error"),
    Exception: Refusal(status=500, type="server_error", code="internal_error"),
}
"""By class of error: the first of its bases that is here decides."""

UNEXPECTED = "the gateway failed; its log says why"


def refusal_of(error: Exception) -> Refusal:
    """How an error reaches a caller."""
    return next(REFUSALS[kind] for kind in type(error).__mro__ if kind in REFUSALS)


def error_object(error: Exception) -> dict[str, Any]:
    """The body of a response that says what went wrong, as OpenAI writes it."""
    refusal = refusal_of(error)
    return {
        "error": {
            "message": str(error) if isinstance(error, IblipError) else UNEXPECTED,
            "type": refusal.type,
            "param": getattr(error, "param", "messages" if type(error) is InputError else None),
            "code": refusal.code or None,
        }
    }


def headers_of(error: Exception) -> dict[str, str]:
    """The headers that go with it: when to ask again, or what to prove oneself with."""
    status = refusal_of(error).status
    if status in (429, 503):
        seconds = getattr(error, "retry_after_s", None)
        return {"retry-after": str(math.ceil(RETRY_AFTER_S if seconds is None else seconds))}
    return {"www-authenticate": "Bearer"} if status == 401 else {}
