"""`ServerOptions`: how a server is started."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from iblip.engines.vision_cache.directory import MIB, CacheDirectory
from iblip.export.errors import OptionError
from iblip.export.system.paths import settle_paths
from iblip.serving.credentials import check_token
from iblip.serving.server.closed import CLOSED
from iblip.serving.server.tls import ServerTLS
from iblip.serving.server.wall.limits import MOST_MIB
from iblip.serving.steps.policy import Policy

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How a server is started.

    Attributes:
        host: address to listen on; the default is reachable from this machine only.
        http_port, grpc_port, metrics_port: 0 takes a free one.
        cache_mib: of the response cache, in MiB; 0 is no cache, and every question about an image
            then encodes it again.
        vision_cache: where images that have been encoded are found again after a restart.
        max_http_body_mib: most MiB of a request's body over HTTP, where a wall stands before
            Triton; 0 is no wall, and Triton's own HTTP server listens.
        triton: a `tritonserver`, or the folder above its `bin`; `None` looks for one.
        ready_timeout_s: how long the models may take to load.
        stop_timeout_s: how long running requests may take to end, before they are killed.
        log: file for the server's log, appended to; `None` keeps it only while the server runs.
        echo_log: whether to copy the log to standard error, where it goes to no file.
        policy: what the operator has decided for all requests.
        tls: of gRPC; with it HTTP and metrics, for which Triton has no TLS, stay on this machine.
        token: what callers must have in a header to be answered; `None` asks for none.
        opened: which of `closed.CLOSED` anybody may call.
        allow_known_vulnerabilities: whether to let other machines reach a Triton that has some.
        environment: variables for the server and its models, besides this process's own.
        extra: more flags for `tritonserver`; they go before this project's own defaults.

    Raises:
        OptionError: a port, a size or a time is out of range, or the log cannot be written.
    """

    host: str = LOOPBACK
    http_port: int = 0
    grpc_port: int = 0
    metrics_port: int = 0
    cache_mib: int = 64
    vision_cache: CacheDirectory | None = None
    max_http_body_mib: int = 64
    triton: Path | None = None
    ready_timeout_s: float = 600.0
    stop_timeout_s: float = 10.0
    log: Path | None = None
    echo_log: bool = False
    policy: Policy = field(default_factory=Policy)
    tls: ServerTLS | None = None
    token: str | None = field(default=None, repr=False)
    opened: tuple[str, ...] = ()
    allow_known_vulnerabilities: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        settle_paths(self, "triton", "log")
        if self.log is not None:
            check_log(self.log)
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            if name.endswith("_port") and not 0 <= value <= 65535:
                raise OptionError(f"{name} is {value}; expected 0 (any free one) to 65535")
            if name.endswith("_timeout_s") and not value > 0:
                raise OptionError(f"{name} is {value}; expected more than 0 seconds")
        ports = [port for port in (self.http_port, self.grpc_port, self.metrics_port) if port]
        if len(set(ports)) < len(ports):
            raise OptionError(
                f"http_port, grpc_port and metrics_port are {self.http_port}, {self.grpc_port} and"
                f" {self.metrics_port}; expected three different ones, or 0 (any free one)"
            )
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB
        if not 0 <= self.cache_mib <= memory:  # Triton takes all of it at its start
            raise OptionError(
                f"cache_mib is {self.cache_mib}; expected 0 (no cache) to {memory} MiB, the memory "
                "of this machine"
            )
        if not 0 <= self.max_http_body_mib <= MOST_MIB:
            raise OptionError(
                f"max_http_body_mib is {self.max_http_body_mib}; expected 0 (no filter before "
                f"Triton's HTTP server) to {MOST_MIB} MiB"
            )
        if unknown := set(self.opened) - set(CLOSED):
            raise OptionError(f"{sorted(unknown)} cannot be opened; expected of {list(CLOSED)}")
        if self.token is not None:
            check_token(self.token)


def check_log(path: Path) -> None:
    """Raises `OptionError` where a log cannot be appended to."""
    folder = path.absolute().parent
    if path.is_dir():
        fault = "it is a directory"
    elif not folder.is_dir():
        fault = f"there is no directory {folder}"
    elif not os.access(path if path.exists() else folder, os.W_OK):
        fault = "it may not be written to"
    else:
        return
    raise OptionError(f"--log {path}: {fault}. Give a file that can be appended to.")
