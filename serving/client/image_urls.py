"""Images from the web, where the caller allows it: bounded in size and time, and public.

Whoever passes on addresses that others have written lets them choose what is fetched from where
this process runs. So only public hosts are asked, whatever a name or a redirect stands for; the
address that is checked is the one that is connected to. Proxies of the environment are not used.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, TypeGuard
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from iblip.export.errors import InputError, OptionError
from iblip.export.messages import shown
from iblip.serving.client.patience import check_seconds

PORTS = {"https": 443, "http": 80}
"""The schemes that can be allowed, and their ports."""

CHUNK_BYTES = 1 << 16

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, kw_only=True)
class ImageURLs:
    """Which images a client fetches from the web. `image_urls=True` is this as it comes.

    Attributes:
        schemes: `"https"`, `"http"` or both. A redirect never leads from https to http.
        hosts: names of the hosts that may be asked, `"cdn.example.org"`, or `".example.org"` for
            all of a domain; `None` is any host. Redirects are held to it, too.
        private: whether hosts in private networks and on this machine may be asked. Do not allow
            it for addresses that others have written.
        max_bytes: the largest image.
        timeout_s: seconds for one image, redirects included. Looking up its host is not counted.
        redirects: most redirects that are followed.

    Raises:
        OptionError: a scheme is another, or a number is out of range.
    """

    schemes: tuple[str, ...] = ("https",)
    hosts: tuple[str, ...] | None = None
    private: bool = False
    max_bytes: int = 32 << 20
    timeout_s: float = 10.0
    redirects: int = 3

    def __post_init__(self) -> None:
        if isinstance(self.schemes, str) or not (self.schemes and set(self.schemes) <= set(PORTS)):
            raise OptionError(f"schemes is {shown(self.schemes)}; expected some of {tuple(PORTS)}")
        if isinstance(self.hosts, str):
            raise OptionError(f"hosts is {shown(self.hosts)}; expected a tuple of names, or None")
        if self.max_bytes < 1 or self.redirects < 0:
            raise OptionError(f"{self!r}: expected max_bytes above 0, and redirects of 0 or more")
        check_seconds("timeout_s", self.timeout_s)

    @classmethod
    def settled(cls, urls: ImageURLs | bool | None) -> ImageURLs | None:
        """What a client's argument stands for: `True` is this as it comes, `False` fetches none."""
        if urls is None or isinstance(urls, cls):
            return urls
        if isinstance(urls, bool):
            return cls() if urls else None
        raise OptionError(f"image_urls is {shown(urls)}; expected True, False, or ImageURLs(…)")

    def __str__(self) -> str:
        places = "any host" if self.hosts is None else " and ".join(self.hosts) or "no host"
        public = "" if self.private else " that is public"
        return (
            f"{' and '.join(self.schemes)} from {places}{public}, at most {self.max_bytes:,} "
            f"bytes, within {self.timeout_s:g} s and {self.redirects} redirects"
        )

    def fetch(self, url: str) -> bytes:
        """Returns the encoded image at an address.

        Raises:
            InputError: the address is not allowed, or could not be fetched. The message says what
                is allowed.
        """
        end, address = time.monotonic() + self.timeout_s, url
        for _ in range(self.redirects + 1):
            parts = self._check(address, url)
            try:
                with _Exchange(parts, self._socket(parts, url, end), end) as exchange:
                    if exchange.location is None:
                        return self._read(exchange, url)
                    following = urljoin(address, exchange.location)
            except (OSError, http.client.HTTPException, ValueError) as error:
                is_late = isinstance(error, TimeoutError) or time.monotonic() >= end
                late = f"took longer than {self.timeout_s:g} s"
                reason = late if is_late else f"could not be fetched: {error}"
                raise self._refused(url, reason) from error
            if parts.scheme == "https" and not following.lower().startswith("https:"):
                raise self._refused(url, f"redirects to {_cut(following)}")
            address = following
        raise self._refused(url, "redirects too often")

    def _check(self, address: str, url: str) -> SplitResult:
        """The parts of an address that is allowed."""
        led = "" if address == url else f"redirects to {_cut(address)}, which "
        try:
            parts = urlsplit(address)
            _ = parts.port
        except ValueError as error:
            raise self._refused(url, f"{led}is not an address: {error}") from error
        scheme, host = parts.scheme.lower(), (parts.hostname or "").rstrip(".")
        if scheme not in self.schemes or not host:
            raise self._refused(url, f"{led}is not allowed")
        if parts.username is not None:
            raise self._refused(url, f"{led}has a user's name in it")
        if self.hosts is not None and not any(_is_in(host, name) for name in self.hosts):
            raise self._refused(url, f"{led}is not of an allowed host")
        return parts._replace(scheme=scheme)

    def _socket(self, parts: SplitResult, url: str, end: float) -> socket.socket:
        """Connected to the first address of the host that is allowed and answers."""
        host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
        fault: Exception | None = None
        for family, address in _addresses(host, port):
            if not (self.private or _is_public(address[0])):
                fault = self._refused(url, f"leads to {host}, {address[0]}, which is not public")
                continue
            connection = socket.socket(family, socket.SOCK_STREAM)
            try:
                connection.settimeout(_left(end))
                connection.connect(address)
                if parts.scheme == "http":
                    return connection
                context = ssl.create_default_context()
                return context.wrap_socket(connection, server_hostname=host)
            except OSError as error:
                connection.close()
                fault = error
        raise fault or OSError(f"{host} has no address")

    def _read(self, exchange: _Exchange, url: str) -> bytes:
        if exchange.status != HTTPStatus.OK:
            raise self._refused(url, f"has the HTTP status {exchange.status}")
        if (exchange.length or 0) > self.max_bytes:
            raise self._refused(url, f"has {exchange.length:,} bytes")
        data = bytearray()
        for chunk in exchange.chunks():
            data += chunk
            if len(data) > self.max_bytes:
                raise self._refused(url, f"has more than {self.max_bytes:,} bytes")
        if exchange.length is not None and len(data) < exchange.length:
            raise self._refused(url, f"ended after {len(data):,} of {exchange.length:,} bytes")
        return bytes(data)

    def _refused(self, url: str, reason: str) -> InputError:
        return InputError(
            f"the image {_cut(url)} {reason}. Allowed by image_urls: {self}. Otherwise download it "
            "first and give the file."
        )


class _Exchange:
    """One HTTP request and the head of its response. A context manager: leaving closes it."""

    def __init__(self, parts: SplitResult, connection: socket.socket, end: float) -> None:
        self._connection, self._end = connection, end
        # A timeout of the socket would begin again with each byte of a server that drips.
        self._timer = threading.Timer(_left(end), partial(_shut, connection))
        self._timer.daemon = True
        self._timer.start()
        self._http = http.client.HTTPConnection(parts.netloc)
        self._http.sock = connection
        try:
            path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
            query = f"?{quote(parts.query, safe='/%:@!$&()*+,;=~-._?')}" if parts.query else ""
            headers = {"Host": parts.netloc, "Accept": "image/*", "User-Agent": "iblip"}
            self._http.request("GET", path + query, headers=headers)
            self._response = self._http.getresponse()
        except BaseException:
            self.__exit__()
            raise
        self.status = self._response.status
        self.length = self._response.length
        is_redirect = self.status in (301, 302, 303, 307, 308)
        self.location = self._response.getheader("Location") if is_redirect else None

    def __enter__(self) -> _Exchange:
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()
        self._http.close()
        self._connection.close()

    def chunks(self) -> Iterator[bytes]:
        """The body; raises `TimeoutError` when the time is over."""
        while chunk := self._response.read1(CHUNK_BYTES):
            yield chunk
        _left(self._end)  # the end of the time looks like the end of the body


def is_web_address(source: object) -> TypeGuard[str]:
    """Whether an image is given as an `http:` or `https:` address."""
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://"))


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _addresses(host: str, port: int) -> Iterator[tuple[Any, Any]]:
    for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        yield family, address


def _is_public(number: str) -> bool:
    """Whether an address is one of the internet's, and not one of another kind in disguise."""
    address = ipaddress.ip_address(number.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            address = inner
    return address.is_global and not address.is_multicast


def _is_in(host: str, allowed: str) -> bool:
    host, allowed = host.lower(), allowed.lower().rstrip(".")
    return host == allowed or (allowed.startswith(".") and host.endswith(allowed))


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _cut(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"
