"""What a client proves itself with, and whom it believes: TLS, a token, other metadata."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]

from iblip.export.errors import OptionError
from iblip.export.messages import shown
from iblip.serving.credentials import check_authorities, check_key_pair, check_token
from iblip.serving.wire.names import GRPC_TOKEN

_KEY = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[ -~]*")


@dataclass(frozen=True, kw_only=True)
class TLS:
    """How to reach a server that speaks TLS. Files are read when the client is made.

    Attributes:
        authorities: PEM file of the authorities that may have signed the server's certificate;
            `None` takes those that gRPC carries, or `GRPC_DEFAULT_SSL_ROOTS_FILE_PATH`.
        certificate, key: PEM files of the client, for a server with mutual TLS.
        server_name: the name in the server's certificate, where it is not that of the address.

    Raises:
        OptionError: a file cannot be read, is of another kind, or does not fit the other.
    """

    authorities: str | PathLike[str] | None = None
    certificate: str | PathLike[str] | None = None
    key: str | PathLike[str] | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise OptionError(f"{self}: expected both a certificate and its key, or neither")
        if self.authorities is not None:
            check_authorities(Path(self.authorities))
        if self.certificate is not None and self.key is not None:
            check_key_pair(Path(self.certificate), Path(self.key))

    @classmethod
    def settled(cls, tls: TLS | bool | None) -> TLS | None:
        """What a client's argument stands for: `True` is TLS as it comes, `None` is none."""
        if tls is None or isinstance(tls, cls):
            return tls
        if isinstance(tls, bool):
            return cls() if tls else None
        raise OptionError(f"tls is {tls!r:.200}; expected True, or TLS(authorities=…)")

    def credentials(self) -> Any:
        """As gRPC takes it."""
        files = (self.authorities, self.key, self.certificate)
        contents = [None if path is None else Path(path).read_bytes() for path in files]
        return grpc.ssl_channel_credentials(*contents)

    def channel_options(self) -> list[tuple[str, str]]:
        """Options of the channel."""
        name = self.server_name
        return [("grpc.ssl_target_name_override", name)] if name else []


Metadata = Mapping[str, str] | Callable[[], Mapping[str, str]]
"""Headers of gRPC's calls, or what returns those of one call."""


def settled_metadata(
    token: str | None, metadata: Mapping[str, str] | None
) -> tuple[tuple[str, str], ...]:
    """The metadata of every call.

    Raises:
        OptionError: a name or a value that no header can have, or a token that is none.
    """
    try:
        pairs = dict(metadata or {})
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"metadata is {shown(metadata)}; expected a mapping of names to texts"
        ) from error
    for name, value in pairs.items():
        if not (isinstance(name, str) and _KEY.fullmatch(name) and not name.endswith("-bin")):
            raise OptionError(f"metadata has the name {name!r:.200}; expected a-z 0-9 - _ . alone")
        if not (isinstance(value, str) and _VALUE.fullmatch(value)):
            raise OptionError(f"the metadata {name!r} has a value that is not printable ASCII text")
    if token is not None:
        check_token(token)
        pairs[GRPC_TOKEN] = token
    return tuple(pairs.items())
