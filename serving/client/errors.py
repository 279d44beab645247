"""What can go wrong between a client and its server.

    IblipError
    ├── UsageError
    │   ├── OptionError            a generation option is misspelt or out of range
    │   └── InputError             the image, the prompt or a tensor cannot be used
    ├── DeadlineError              the answer was not finished in time
    ├── EngineError                the server's engine failed
    │   └── QueueFullError         too many requests are waiting; later may be better
    └── ServingError
        └── ClientError
            ├── UnreachableError   there is no server at that address
            ├── NotServedError     a server, but without this model, or not ready
            ├── DisconnectedError  the server went away before the answer was whole
            ├── CancelledError     the answer was cancelled, here or by the server
            └── ProtocolError      the server's words are not this client's

The first half is raised by the engines too: a caller handles an answer from this process and one
from a server alike. `DisconnectedError`, `DeadlineError` and `CancelledError` come after some text
may have come: a stream has yielded it, and has it still as `stream.text`.
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
    "CancelledError",
    "ClientError",
    "DeadlineError",
    "DisconnectedError",
    "EngineError",
    "InputError",
    "NotServedError",
    "OptionError",
    "ProtocolError",
    "QueueFullError",
    "UnreachableError",
]


class ClientError(ServingError):
    """The client and its server did not get to an answer."""


class UnreachableError(ClientError):
    """There is no server at that address."""


class NotServedError(ClientError):
    """The server is there, but does not serve this model, or is not ready."""


class DisconnectedError(ClientError):
    """The server went away before the answer was whole."""


class CancelledError(ClientError):
    """The answer was cancelled, by this client or by the server."""


class ProtocolError(ClientError):
    """The server answered with something that this client does not know."""
