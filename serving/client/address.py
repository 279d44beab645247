"""A server's address: `host:port` or `host`, checked, and the proxy on the way to it. Does no I/O.

gRPC takes a proxy from the environment (`grpc_proxy`, `https_proxy`, `http_proxy`; `no_grpc_proxy`
and `no_proxy` leave hosts out), in lower case, and for this machine's own addresses, too.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from iblip.export.errors import OptionError

PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
"""The variables that gRPC reads; the first that is set counts."""

NO_PROXIES = ("no_grpc_proxy", "no_proxy", "NO_PROXY")
"""The same of hosts that are reached directly. gRPC itself knows the first two."""

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.IGNORECASE)
_ADDRESS = re.compile(
    r"(?P<host>[^\s/:\[\]]{1,253}|\[[0-9a-f:.]+(?:%\w+)?\])(?::(?P<port>[0-9]{1,5}))?", re.I
)

PORT = 8001
"""Of gRPC, unless `iblip serve` is told otherwise."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a server is.

    Attributes:
        host: a name or a number; an IPv6 address without its brackets.
        port: of the gRPC service.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> Address:
        """Reads `host:port`, or `host` for port 8001, with or without `grpc://` before it.

        Raises:
            OptionError: it is something else, such as an address of HTTP.
        """
        if not isinstance(url, str):
            raise OptionError(f"url is {url!r:.200}; expected {_EXPECTED}")
        scheme = _SCHEME.fullmatch(url.strip())
        if scheme and scheme[1].lower() != "grpc":
            raise OptionError(
                f"url is {url[:200]!r}; expected {_EXPECTED}. Leave out {scheme[1]}://, and give "
                f"the port of gRPC, not that of HTTP: {PORT}, unless `iblip serve` printed another."
            )
        address = scheme[2].rstrip("/") if scheme else url.strip()
        match = _ADDRESS.fullmatch(address)
        if match is None or not 0 < int(match["port"] or PORT) < 65536:
            raise OptionError(f"url is {url[:200]!r}; expected {_EXPECTED}")
        return cls(host=match["host"].strip("[]"), port=int(match["port"] or PORT))

    @property
    def target(self) -> str:
        """As gRPC takes it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether it can only be this machine."""
        try:
            return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback
        except ValueError:
            return self.host.rstrip(".").lower() == "localhost"

    @property
    def proxy_variable(self) -> str | None:
        """The variable whose proxy is on the way to it; `None` where it is reached directly."""
        name = next((name for name in PROXIES if os.environ.get(name)), None)
        left_out = any(self._is_in(os.environ.get(variable, "")) for variable in NO_PROXIES)
        return None if self.is_loopback or left_out else name

    def _is_in(self, hosts: str) -> bool:
        """Whether a variable such as `no_proxy` names it: itself, a domain, a network, or `*`."""
        return any(
            entry == "*" or f".{self.host}".lower().endswith(f".{entry.lstrip('.')}".lower())
            for entry in filter(None, (entry.strip() for entry in hosts.split(",")))
        ) or any(_contains(entry.strip(), self.host) for entry in hosts.split(","))

    def __str__(self) -> str:
        """The address for messages, which name the proxy, too."""
        name = self.proxy_variable
        if name is None:
            return self.target
        # Without the user and password that it may have.
        proxy = urlsplit(os.environ[name])
        place = proxy.netloc.rpartition("@")[2] or "?"
        return f"{self.target} through the proxy {place} ({name}; NO_PROXY leaves hosts out)"


def _contains(network: str, host: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


_EXPECTED = "host:port of the server's gRPC service, such as 127.0.0.1:8001"
