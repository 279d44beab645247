"""What both clients are made of, but for the I/O: where the server is, and how it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from iblip.engines.language_model.keywords import Options, options_with_keywords
from iblip.engines.language_model.presets import Preset
from iblip.engines.language_model.types import Priority
from iblip.export.images import ImageSources, Reading, check_reading
from iblip.export.system.arguments import check_argument
from iblip.serving.client.address import Address
from iblip.serving.client.compat import resolve_options
from iblip.serving.client.errors import ClientError
from iblip.serving.client.image_urls import ImageURLs
from iblip.serving.client.mapping import Question
from iblip.serving.client.messages import (
    DEFAULT_URL,
    KeepAlive,
    channel_options,
    infer_request,
    pixels_of_request,
)
from iblip.serving.client.patience import Attempts, Retries, Timeout, Unset
from iblip.serving.client.protocol import Message, Service
from iblip.serving.client.security import TLS, Metadata, settled_metadata
from iblip.serving.wire.contract import ServerContract
from iblip.serving.wire.names import MODEL

AnyTimeout = Timeout | float | Unset | None
"""A call's timeout. A number stands for both of `Timeout`'s, `None` is for ever, and `UNSET` is
what the client has."""

DEFAULT_TIMEOUT = Timeout()
DEFAULT_RETRIES = Retries()

READY_S = 600.0
"""Seconds for which `wait_until_ready` waits, unless the caller says otherwise."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question, as the caller of a client has put it. The fields are arguments of `ask`."""

    image: ImageSources
    prompt: str
    options: Options
    compat: str | None
    priority: Priority
    timeout: AnyTimeout

    def __post_init__(self) -> None:
        check_argument("compat", self.compat, str | None)


class BaseClient:
    """The settings of a client. Pickled, it is these alone: the copy connects by itself.

    Args:
        url: `host:port` of the server's gRPC service; the port is 8001 where it is left out. The
            first call connects.
        timeout: how long to wait for each answer, unless the call says otherwise: 5 seconds for a
            server that cannot be reached, 10 minutes for the answer. A number of seconds is both;
            `None` is for ever.
        retries: what is asked again, and when; a number is the most times, 0 never.
        image_urls: whether images may be `https:` addresses: `True`, or `ImageURLs` with what is
            allowed. Do not allow it for addresses that others have written without reading
            `ImageURLs`.
        preprocessing: how image files become RGB: `"viewed"`, as they are meant to be seen; or
            `"lavis"`, as LAVIS reads them (`export.images.Reading`).
        model: name of the Triton model.
        keepalive: pings that detect a server that has vanished.
        tls: `True`, or `TLS` with files, for a server that speaks TLS.
        token: what the server's `--token-file` holds. Without TLS, whoever is on the way reads it.
        metadata: headers of every call, for a proxy in front of the server; a function that returns
            them is called for each, as for a `traceparent` or a token that is renewed.

    Attributes:
        url, model, timeout, retries: as given.

    Raises:
        OptionError: `url` is no such address, a file of `tls` cannot be used, the token or the
            metadata cannot travel in a header, there is no such `preprocessing`, or a number is
            out of range.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: Timeout | float | None = DEFAULT_TIMEOUT,
        retries: Retries | int | None = DEFAULT_RETRIES,
        image_urls: ImageURLs | bool = False,
        preprocessing: Reading = "viewed",
        model: str = MODEL,
        keepalive: KeepAlive | None = None,
        tls: TLS | bool | None = None,
        token: str | None = None,
        metadata: Metadata | None = None,
    ) -> None:
        check_argument("model", model, str)
        self.url = url
        self.model = model
        self.timeout = Timeout.settled(timeout, DEFAULT_TIMEOUT)
        self.retries = Retries.settled(retries)
        self._image_urls = ImageURLs.settled(image_urls)
        self._preprocessing = check_reading(preprocessing)
        self._keepalive = keepalive or KeepAlive()
        self._tls = TLS.settled(tls)
        self._token, self._given_metadata = token, metadata
        self._settled = settled_metadata(token, None if callable(metadata) else metadata)
        self._address = Address.parse(url)
        self._place = str(self._address)
        self._contract: ServerContract | None = None
        self._closed = False
        self._open()

    def __repr__(self) -> str:
        closed = ", closed" if self._closed else ""
        return f"<{type(self).__name__} of {self._place}{closed}>"

    def _open(self) -> None:
        raise NotImplementedError

    def __reduce__(self) -> tuple[Any, ...]:
        settings: dict[str, Any] = {
            "timeout": self.timeout,
            "retries": self.retries,
            "image_urls": self._image_urls or False,
            "preprocessing": self._preprocessing,
            "model": self.model,
            "keepalive": self._keepalive,
            "tls": self._tls,
            "token": self._token,
            "metadata": self._given_metadata,
        }
        return partial(type(self), self.url, **settings), ()

    def _connect_channel(self, grpc: Any, *more: tuple[str, Any]) -> tuple[Any, Service]:
        """A channel of `grpc` or `grpc.aio` with more options, and the service behind it."""
        target = self._address.target
        direct = self._address.proxy_variable is None
        connect = self.timeout.connect
        options: list[tuple[str, Any]] = [
            *channel_options(self._keepalive, proxy=not direct, connect=connect),
            *more,
        ]
        if self._tls is None:
            channel = grpc.insecure_channel(target, options=options)
        else:
            options += self._tls.channel_options()
            channel = grpc.secure_channel(target, self._tls.credentials(), options=options)
        return channel, Service(channel, self._metadata)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of one call."""
        given = self._given_metadata
        return self._settled + settled_metadata(None, given()) if callable(given) else self._settled

    def _check_open(self) -> None:
        if self._closed:
            name = type(self).__name__
            raise ClientError(f"this {name} of {self.url} has been closed; create another")

    def _attempts(self, timeout: AnyTimeout) -> Attempts:
        return Attempts(Timeout.settled(timeout, self.timeout), self.retries)

    def _request(
        self, asked: Asked, contract: ServerContract, *, stream: bool
    ) -> tuple[Message, Preset | None]:
        """The request, and the preset that `compat` names. Decodes the images, and may fetch them.

        Raises:
            InputError, OptionError: something in it cannot be used.
        """
        options, preset = resolve_options(contract, asked.options, asked.compat)
        request = infer_request(
            pixels_of_request(asked.image, contract, self._image_urls, self._preprocessing),
            asked.prompt,
            options,
            model=self.model,
            timeout_s=None,
            stream=stream,
            priority=asked.priority,
        )
        return request, preset


def asked_of_row(question: Question, others: Asked) -> Asked:
    """One row of a map.

    Args:
        question: the row; what it names overrides the others.
        others: what holds for all rows.
    """
    own = dict(question.arguments)
    options = options_with_keywords(own.pop("options", None), {})
    given = options if isinstance(options, Mapping) else options.to_mapping()
    how: dict[str, Any] = {
        name: own.pop(name, getattr(others, name)) for name in ("compat", "priority", "timeout")
    }
    return Asked(
        image=question.image,
        prompt=question.prompt,
        options=options_with_keywords(others.options, {**given, **own}),
        **how,
    )
