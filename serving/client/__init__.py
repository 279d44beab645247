"""The client: images and questions in, answers out.

Needs Pillow, numpy and `tritonclient[grpc]`; neither torch, transformers nor onnxruntime.
"""

from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import Answer, FinishReason, RankedCandidate, Timing
from iblip.serving.client.asynchronous import AsyncAnswerStream, AsyncClient
from iblip.serving.client.errors import (
    CancelledError,
    ClientError,
    DeadlineError,
    DisconnectedError,
    EngineError,
    InputError,
    NotServedError,
    OptionError,
    ProtocolError,
    QueueFullError,
    UnreachableError,
)
from iblip.serving.client.messages import DEFAULT_URL, KeepAlive
from iblip.serving.client.sync import AnswerStream, Client
from iblip.serving.wire import Limits, ServerContract

__all__ = [
    "DEFAULT_URL",
    "Answer",
    "AnswerStream",
    "AsyncAnswerStream",
    "AsyncClient",
    "CancelledError",
    "Client",
    "ClientError",
    "DeadlineError",
    "DisconnectedError",
    "EngineError",
    "FinishReason",
    "GenerationOptions",
    "InputError",
    "KeepAlive",
    "Limits",
    "NotServedError",
    "OptionError",
    "ProtocolError",
    "QueueFullError",
    "RankedCandidate",
    "ServerContract",
    "Timing",
    "UnreachableError",
]
