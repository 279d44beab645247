"""The client: images and questions in, answers out.

Needs Pillow, numpy and `tritonclient[grpc]`; neither torch, transformers nor onnxruntime.
"""

from engines.language_model.types import (
    Answer,
    FinishReason,
    GenerationOptions,
    RankedCandidate,
    Timing,
)
from serving.client.asynchronous import AsyncAnswerStream, AsyncInstructBlipClient
from serving.client.errors import (
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
from serving.client.messages import KeepAlive
from serving.client.sync import DEFAULT_URL, AnswerStream, InstructBlipClient
from serving.wire import Limits, ServerContract

__all__ = [
    "DEFAULT_URL",
    "Answer",
    "AnswerStream",
    "AsyncAnswerStream",
    "AsyncInstructBlipClient",
    "CancelledError",
    "ClientError",
    "DeadlineError",
    "DisconnectedError",
    "EngineError",
    "FinishReason",
    "GenerationOptions",
    "InputError",
    "InstructBlipClient",
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
