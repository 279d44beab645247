"""What can go wrong between a client and its server.

    IblipError
    ├── UsageError
    │   ├── OptionError            a generation option is unknown or out of range
    │   └── InputError             the image, the prompt or a tensor cannot be used
    ├── DeadlineError              the answer was not finished in time
    ├── EngineError                the server's engine failed
    │   └── QueueFullError         too many requests are waiting; try again later (retryable)
    └── ServingError
        └── ClientError
            ├── UnreachableError   there is no server at that address (retryable)
            │   └── UnknownHostError   there is no host of that name (not retryable)
            ├── AccessError        the server wants what the client lacks, or the reverse
            │   ├── NoTLSError     the client speaks TLS, the server does not
            │   ├── UntrustedError the server's certificate is not trusted, or of another name
            │   └── RefusedError   the server wants a token: another, or one at all
            ├── NotServedError     a server, but without this model
            │   └── NotReadyError      the server is starting or stopping (retryable)
            ├── DisconnectedError  the server went away before the answer was complete (retryable)
            ├── CancelledError     the answer was cancelled, here or by the server
            └── ProtocolError      the server speaks another protocol than this client

`error.is_retryable` says whether the same question may be answered later. The clients themselves
ask again within their timeout (`patience.Retries`), so what they raise has been tried for so long.

The engines raise the first half as well, so a caller handles an answer from this process like one
from a server. `DisconnectedError`, `DeadlineError` and `CancelledError` may follow after part of
the text: the stream has yielded that part and still has it as `stream.text`.
"""

from __future__ import annotations

from iblip.export.errors import (
    DeadlineError,
    EngineError,
    InputError,
    OptionError,
    QueueFullError,
    ServingError,
)

__all__ = [
    "AccessError",
    "CancelledError",
    "ClientError",
    "DeadlineError",
    "DisconnectedError",
    "EngineError",
    "InputError",
    "NoTLSError",
    "NotReadyError",
    "NotServedError",
    "OptionError",
    "ProtocolError",
    "QueueFullError",
    "RefusedError",
    "UnknownHostError",
    "UnreachableError",
    "UntrustedError",
]


class ClientError(ServingError):
    """Client and server did not arrive at an answer."""


class UnreachableError(ClientError):
    """There is no server at that address."""

    is_retryable = True


class UnknownHostError(UnreachableError):
    """There is no host of that name, or nobody who knows it could be asked.

    That is a name misspelt more often than an outage, so it is not waited for.
    """

    is_retryable = False


class AccessError(ClientError):
    """The server wants what the client lacks, or the reverse. Trying again does not help."""


class NoTLSError(AccessError):
    """The client speaks TLS, and the server does not."""


class UntrustedError(AccessError):
    """The server's certificate is not trusted, or of another name."""


class RefusedError(AccessError):
    """The server wants a token: another, or one at all."""


class NotServedError(ClientError):
    """The server is running, but does not serve this model."""


class NotReadyError(NotServedError):
    """The server is starting or stopping, and does not serve this model now."""

    is_retryable = True


class DisconnectedError(ClientError):
    """The server went away before the answer was complete."""

    is_retryable = True


class CancelledError(ClientError):
    """The answer was cancelled, by this client or by the server."""


class ProtocolError(ClientError):
    """The server sent something that this client does not understand."""
