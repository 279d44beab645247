"""The client: images and questions in, answers out.

`Client` and `AsyncClient` ask a server; they share everything but the I/O (`base.py`: their
settings; `address.py`: where a server is; `security.py`: TLS and tokens; `messages.py`: requests
and responses as protobuf messages; `faults.py`: gRPC's failures as the errors of `errors.py`;
`patience.py`: timeouts, and what is asked again; `image_urls.py`: images from the web).
`mapping.py` asks many questions at once, of the model in this process as well; `tally.py` counts
them. What a server takes and serves, a client reads from the server's own config (`serving.wire`),
so it needs no model files. `compat.py` asks as an original does; `lavis*.py` are LAVIS's own calls
and prompts. Needs Pillow, numpy and `tritonclient[grpc]`; knows nothing of torch, transformers,
onnxruntime or of a build's directory.
"""

from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import Answer, FinishReason, RankedCandidate, Timing
from iblip.serving.client.asynchronous import AsyncAnswerStream, AsyncClient
from iblip.serving.client.errors import (
    AccessError,
    CancelledError,
    ClientError,
    DeadlineError,
    DisconnectedError,
    EngineError,
    InputError,
    NoTLSError,
    NotReadyError,
    NotServedError,
    OptionError,
    ProtocolError,
    QueueFullError,
    RefusedError,
    UnknownHostError,
    UnreachableError,
    UntrustedError,
)
from iblip.serving.client.image_urls import ImageURLs
from iblip.serving.client.mapping import Row, RowResult
from iblip.serving.client.messages import DEFAULT_URL, KeepAlive
from iblip.serving.client.patience import Retries, Timeout
from iblip.serving.client.security import TLS
from iblip.serving.client.sync import AnswerStream, Client
from iblip.serving.client.tally import MapProgress
from iblip.serving.wire.contract import Limits, ServerContract

__all__ = [
    "DEFAULT_URL",
    "TLS",
    "AccessError",
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
    "ImageURLs",
    "InputError",
    "KeepAlive",
    "Limits",
    "MapProgress",
    "NoTLSError",
    "NotReadyError",
    "NotServedError",
    "OptionError",
    "ProtocolError",
    "QueueFullError",
    "RankedCandidate",
    "RefusedError",
    "Retries",
    "Row",
    "RowResult",
    "ServerContract",
    "Timeout",
    "Timing",
    "UnknownHostError",
    "UnreachableError",
    "UntrustedError",
]
