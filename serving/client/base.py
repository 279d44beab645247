"""What both clients are made of, but for the I/O: where the server is, and how it is asked."""

from __future__ import annotations

from functools import partial
from typing import Any

from iblip.serving.client.address import Address
from iblip.serving.client.errors import ClientError
from iblip.serving.client.messages import DEFAULT_URL, KeepAlive, channel_options
from iblip.serving.wire import MODEL, ServerContract


class BaseClient:
    """The settings of a client. Pickled, it is these alone: the copy connects by itself.

    Args:
        url: `host:port` of the server's gRPC service. The first call connects.
        timeout_s: seconds for each answer, unless the call gives its own; `None` is no limit.
        model: name of the Triton model.
        keepalive: pings that detect a server that has vanished.

    Raises:
        OptionError: `url` is no such address.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_s: float | None = None,
        model: str = MODEL,
        keepalive: KeepAlive | None = None,
    ) -> None:
        self.url = url
        self.model = model
        self.timeout_s = timeout_s
        self._keepalive = keepalive or KeepAlive()
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
        }
        return partial(type(self), self.url, **settings), ()

    def _channel_options(self) -> list[tuple[str, int]]:
        direct = self._address.proxy_variable is None
        return channel_options(self._keepalive, proxy=not direct)

    def _check_open(self) -> None:
        if self._closed:
            name = type(self).__name__
            raise ClientError(f"this {name} of {self.url} has been closed; create another")
