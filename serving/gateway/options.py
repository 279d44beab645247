"""`GatewayOptions`: what a gateway lets callers do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from iblip.export.errors import OptionError
from iblip.export.messages import shown
from iblip.serving.client.image_urls import ImageURLs
from iblip.serving.client.patience import check_seconds

MIB = 2**20

MOST_MIB = 1024

_HOST = re.compile(r"\.?[\w-]+(\.[\w-]+)*")

_ORIGIN = re.compile(r"https?://[^/\s*]+")


@dataclass(frozen=True, kw_only=True)
class GatewayOptions:
    """What a gateway lets callers do.

    Attributes:
        keys: file of keys, one a line; `None` lets anybody ask.
        max_body_mib: most MiB of a request's body.
        max_open: most requests that may be open at once, of all callers.
        timeout_s: seconds for an answer whose request names none; `None` is no limit.
        image_hosts: hosts from which `https:` images are fetched; empty is none.
        cors_origins: origins whose pages may ask from a browser; empty is none.
        page: whether `/` is a page, from which a browser asks.

    Raises:
        OptionError: a value is out of range.
    """

    keys: Path | None = None
    max_body_mib: int = 32
    max_open: int = 1024
    timeout_s: float | None = 600.0
    image_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    page: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.max_body_mib <= MOST_MIB:
            raise OptionError(f"max_body_mib is {self.max_body_mib}; expected 1 to {MOST_MIB} MiB")
        if self.max_open < 1:
            raise OptionError(f"max_open is {self.max_open}; expected 1 or more")
        check_seconds("timeout_s", self.timeout_s)
        for host in self.image_hosts:
            if not _HOST.fullmatch(host):
                raise OptionError(
                    f"the host {shown(host)} is none; expected a name such as cdn.example.org, or "
                    ".example.org for all of a domain"
                )
        for origin in self.cors_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise OptionError(
                    f"the origin {shown(origin)} is none; expected https://HOST, without a path, "
                    "or *"
                )

    @property
    def image_urls(self) -> ImageURLs | None:
        """Which images are fetched; `None` is none."""
        return ImageURLs(hosts=self.image_hosts) if self.image_hosts else None
