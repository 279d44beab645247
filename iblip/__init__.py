"""Export InstructBLIP, BLIP-2 and MiniGPT-4 to ONNX and TensorRT, run them, and serve them.

    import iblip

    build = iblip.build("Salesforce/instructblip-flan-t5-xl", precision="fp16")
    with iblip.load(build) as model:                                    # in this process
        print(model.ask("photo.jpg", "What is unusual about this image?").text)
    with iblip.serve(build) as server, iblip.Client(server.url) as client:     # behind Triton
        print(client.ask("photo.jpg", "What is unusual about this image?").text)
    iblip.verify(build).save("report.html")                  # compared with transformers

A build is a directory: wherever one is expected, its path (`str` or `Path`) will do. Every error is
an `IblipError`. `iblip.lavis` has LAVIS's own calls.

Importing this package loads nothing but itself: each name is imported when it is first used.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# ONNX Runtime reports its sessions to Microsoft unless this is set before it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from iblip import lavis
    from iblip.building import Build, build
    from iblip.engines.language_model.options import GenerationOptions
    from iblip.engines.language_model.types import Answer
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
    from iblip.hosting import Server, serve
    from iblip.loading import AnswerStream, Model, load
    from iblip.progress import Step
    from iblip.running import run
    from iblip.serving.bulk.running import BulkSummary
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
    from iblip.serving.client.image_urls import ImageURLs
    from iblip.serving.client.mapping import RowResult
    from iblip.serving.client.patience import Retries, Timeout
    from iblip.serving.client.security import TLS
    from iblip.serving.client.sync import Client
    from iblip.serving.client.tally import MapProgress
    from iblip.verifying import Report, verify

_HOMES = {
    "Answer": "iblip.engines.language_model.types",
    "AnswerStream": "iblip.loading",
    "AsyncClient": "iblip.serving.client.asynchronous",
    "Build": "iblip.building",
    "BulkSummary": "iblip.serving.bulk.running",
    "Client": "iblip.serving.client.sync",
    "GenerationOptions": "iblip.engines.language_model.options",
    "ImageURLs": "iblip.serving.client.image_urls",
    "MapProgress": "iblip.serving.client.tally",
    "Model": "iblip.loading",
    "Report": "iblip.verifying",
    "Retries": "iblip.serving.client.patience",
    "RowResult": "iblip.serving.client.mapping",
    "Server": "iblip.hosting",
    "Step": "iblip.progress",
    "TLS": "iblip.serving.client.security",
    "Timeout": "iblip.serving.client.patience",
    "build": "iblip.building",
    "load": "iblip.loading",
    "run": "iblip.running",
    "serve": "iblip.hosting",
    "verify": "iblip.verifying",
}
_ERRORS = ("iblip.export.errors", "iblip.serving.client.errors")
_MODULES = ("lavis",)

__all__ = [
    "TLS",
    "AccessError",
    "Answer",
    "AnswerStream",
    "AsyncClient",
    "Build",
    "BuildDirectoryError",
    "BulkSummary",
    "CancelledError",
    "CheckpointError",
    "Client",
    "ClientError",
    "ContractError",
    "DeadlineError",
    "DisconnectedError",
    "EngineError",
    "ExportError",
    "GenerationOptions",
    "IblipError",
    "ImageURLs",
    "InputError",
    "MapProgress",
    "Model",
    "NoTLSError",
    "NotReadyError",
    "NotServedError",
    "OptionError",
    "ProtocolError",
    "QueueFullError",
    "RefusedError",
    "Report",
    "Retries",
    "RowResult",
    "Server",
    "ServingError",
    "Step",
    "Timeout",
    "UnknownHostError",
    "UnreachableError",
    "UntrustedError",
    "UsageError",
    "VerificationError",
    "build",
    "lavis",
    "load",
    "run",
    "serve",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("iblip")
    if name in _MODULES:
        return import_module(f"iblip.{name}")
    if name in __all__:
        for home in (_HOMES[name],) if name in _HOMES else _ERRORS:
            module = import_module(home)
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    own = (name for name in globals() if name.startswith("__"))
    return sorted({*own, *__all__, "__version__"})
