"""The certificates of a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from iblip.export.system.paths import settle_paths
from iblip.serving.credentials import check_authorities, check_key_pair


@dataclass(frozen=True, kw_only=True)
class ServerTLS:
    """What a server proves itself with over gRPC, and whom it believes.

    Attributes:
        certificate, key: of the server; PEM, the key not encrypted.
        client_authorities: PEM; callers need a certificate that one of these has signed. `None`
            takes callers without one.

    Raises:
        OptionError: a file cannot be read, is of another kind, or does not fit the other.
    """

    certificate: Path
    key: Path
    client_authorities: Path | None = None

    def __post_init__(self) -> None:
        settle_paths(self, "certificate", "key", "client_authorities")
        check_key_pair(self.certificate, self.key)
        if self.client_authorities is not None:
            check_authorities(self.client_authorities)
