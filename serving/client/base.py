"""What both clients are made of, but for the I/O: where the server is, and how it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

from iblip.serving.client.address import Address
from iblip.serving.client.errors import ClientError
from iblip.serving.client.messages import DEFAULT_URL, KeepAlive, channel_options
from iblip.serving.client.security import TLS, settled_metadata
from iblip.serving.wire import MODEL, ServerContract

CALLS = ("ModelConfig", "ModelStreamInfer")
"""What a client asks of a server: how it is built, and questions."""


class BaseClient:
    """The settings of a client. Pickled, it is these alone: the copy connects by itself.

    Args:
        url: `host:port` of the server's gRPC service. The first call connects.
        timeout_s: seconds for each answer, unless the call gives its own; `None` is no limit.
        model: name of the Triton model.
        keepalive: pings that detect a server that has vanished.
        tls: `True`, or `TLS` with files, for a server that speaks TLS.
        token: what the server's `--token-file` holds. Without TLS, whoever is on the way reads it.
        metadata: headers of every call, for a proxy in front of the server.

    Raises:
        OptionError: `url` is no such address, a file of `tls` cannot be used, or the token or the
            metadata cannot travel in a header.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_s: float | None = None,
        model: str = MODEL,
        keepalive: KeepAlive | None = None,
        tls: TLS | bool | None = None,
        token: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.url = url
        self.model = model
        self.timeout_s = timeout_s
        self._keepalive = keepalive or KeepAlive()
        self._tls = TLS.settled(tls)
        self._metadata = settled_metadata(token, metadata)
        self._address = Address.parse(url)
        self._place = str(self._address)
        self._contract: ServerContract | None = None
        self._closed = False
        self._open()

    def _open(self) -> None:
        raise NotImplementedError

    def __reduce__(self) -> tuple[Any, ...]:
        settings: dict[str, Any] = {
            "timeout_s": self.timeout_s,
            "model": self.model,
            "keepalive": self._keepalive,
            "tls": self._tls,
            "metadata": dict(self._metadata),
        }
        return partial(type(self), self.url, **settings), ()

    def _connect_channel(self, grpc: Any) -> tuple[Any, Any]:
        """A channel of `grpc` or `grpc.aio`, and the service behind it."""
        from tritonclient.grpc import service_pb2_grpc

        target = self._address.target
        direct = self._address.proxy_variable is None
        options: list[tuple[str, Any]] = [*channel_options(self._keepalive, proxy=not direct)]
        if self._tls is None:
            channel = grpc.insecure_channel(target, options=options)
        else:
            options += self._tls.channel_options()
            channel = grpc.secure_channel(target, self._tls.credentials(), options=options)
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        calls = {
            name: partial(getattr(stub, name), metadata=self._metadata or None) for name in CALLS
        }
        return channel, SimpleNamespace(**calls)

    def _check_open(self) -> None:
        if self._closed:
            name = type(self).__name__
            raise ClientError(f"this {name} of {self.url} has been closed; create another")
