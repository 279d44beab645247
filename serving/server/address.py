"""Where a server listens: what `--host` names, as a number, and as Triton's flags spell it.

Triton's HTTP server takes numbers alone, and binds to 255.255.255.255 for a name.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import Self

from iblip.export.errors import ServingError

IPV6_MARK = "ipv6:"
"""What libevhtp, the HTTP server of Triton, wants before an IPv6 address."""


@dataclass(frozen=True, kw_only=True)
class ListenAddress:
    """An address of this machine.

    Attributes:
        number: IPv4 or IPv6.
        family: which of the two.
    """

    number: str
    family: socket.AddressFamily

    @classmethod
    def resolve(cls, host: str) -> Self:
        """The address of a host; of several, IPv4 comes first.

        Raises:
            ServingError: it has none.
        """
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM) if host else []
        except (OSError, UnicodeError) as error:  # the latter for a name that no host can have
            reason = error.strerror if isinstance(error, OSError) else error
            message = f"--host {host!r} cannot be found: {reason}"
            raise ServingError(f"{message}. Give an address of this machine.") from error
        addresses = {family: str(address[0]) for family, _, _, _, address in reversed(found)}
        for family in (socket.AF_INET, socket.AF_INET6):
            if family in addresses:
                return cls(number=addresses[family], family=family)
        raise ServingError(f"--host {host!r} has no address. Give an address of this machine.")

    @property
    def is_ipv6(self) -> bool:
        """Whether it is an IPv6 address."""
        return self.family == socket.AF_INET6

    @property
    def is_loopback(self) -> bool:
        """Whether this machine alone can reach it."""
        return ipaddress.ip_address(self.number.partition("%")[0]).is_loopback

    def flag(self, service: str) -> str:
        """As Triton's flag for `http`, `grpc` or `metrics` spells it."""
        if not self.is_ipv6:
            return self.number
        return f"[{self.number}]" if service == "grpc" else f"{IPV6_MARK}{self.number}"

    @property
    def reachable(self) -> str:
        """Where a client on this machine finds what listens here, in brackets if it is IPv6."""
        loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}
        number = loopback.get(self.number, self.number)
        return f"[{number}]" if self.is_ipv6 else number
