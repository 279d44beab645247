"""Export InstructBLIP, BLIP-2 and MiniGPT-4, and ask a server about images.

    from iblip import Client

    with Client("127.0.0.1:8001") as client:
        print(client.ask("photo.jpg", "What is unusual about this image?").text)

Importing this package loads nothing but itself: each name is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iblip.export.errors import (
        BuildDirectoryError,
        CheckpointError,
        ContractError,
        DeadlineError,
        EngineError,
        ExportError,
        IblipError,
        InputError,
        OptionError,
        QueueFullError,
        ServingError,
        UsageError,
        VerificationError,
    )
    from iblip.serving.client.asynchronous import AsyncClient
    from iblip.serving.client.errors import (
        AccessError,
        CancelledError,
        ClientError,
        DisconnectedError,
        NoTLSError,
        NotReadyError,
        NotServedError,
        ProtocolError,
        RefusedError,
        UnknownHostError,
        UnreachableError,
        UntrustedError,
    )
    from iblip.serving.client.security import TLS
    from iblip.serving.client.sync import Client

_HOMES = {
    "Client": "iblip.serving.client.sync",
    "AsyncClient": "iblip.serving.client.asynchronous",
    "TLS": "iblip.serving.client.security",
}
_ERRORS = ("iblip.export.errors", "iblip.serving.client.errors")

__all__ = [
    "TLS",
    "AccessError",
    "AsyncClient",
    "BuildDirectoryError",
    "CancelledError",
    "CheckpointError",
    "Client",
    "ClientError",
    "ContractError",
    "DeadlineError",
    "DisconnectedError",
    "EngineError",
    "ExportError",
    "IblipError",
    "InputError",
    "NoTLSError",
    "NotReadyError",
    "NotServedError",
    "OptionError",
    "ProtocolError",
    "QueueFullError",
    "RefusedError",
    "ServingError",
    "UnknownHostError",
    "UnreachableError",
    "UntrustedError",
    "UsageError",
    "VerificationError",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in (_HOMES[name],) if name in _HOMES else _ERRORS:
            module = import_module(home)
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
