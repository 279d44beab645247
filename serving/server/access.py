"""Who may ask a server for what: TLS, a token, and what nobody may ask for.

Triton knows no users. It restricts groups of calls to callers whose header has a certain value:
inference to those with the operator's token, the groups in `closed.CLOSED` to a key that is made
anew at each start and told to nobody.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator

from iblip.engines.hardware.compatibility import numbers
from iblip.engines.hardware.containers import DEPLOYED
from iblip.export.errors import OptionError, ServingError
from iblip.serving.server.address import ListenAddress
from iblip.serving.server.closed import CLOSED
from iblip.serving.server.installation import Installation
from iblip.serving.server.options import ServerOptions
from iblip.serving.wire.names import TOKEN

WITH_TOKEN = ("inference", "metadata", "model-config", "model-repository", "statistics")
"""Groups of calls that need the token, if there is one. Health does not."""

CLOSED_KEY = "iblip-closed"

FIXED_VERSION = numbers(DEPLOYED.triton)
"""The container's Triton, newer than the last fault that docs/security.md lists."""


def access_flags(options: ServerOptions) -> Iterator[str]:
    """Triton's flags for who may do what."""
    tls = options.tls
    if tls is not None:
        yield "--grpc-use-ssl=true"
        yield f"--grpc-server-cert={tls.certificate.absolute()}"
        yield f"--grpc-server-key={tls.key.absolute()}"
        if tls.client_authorities is not None:
            yield "--grpc-use-ssl-mutual=true"
            yield f"--grpc-root-cert={tls.client_authorities.absolute()}"
    groups = {
        f"{CLOSED_KEY}={secrets.token_hex(32)}": [c for c in CLOSED if c not in options.opened],
        f"{TOKEN}={options.token}": WITH_TOKEN if options.token else (),
    }
    for header, group in groups.items():
        if group:
            for flag in ("grpc-restricted-protocol", "http-restricted-api"):
                yield f"--{flag}={','.join(group)}:{header}"


def address_of(service: str, options: ServerOptions) -> ListenAddress:
    """Where a service listens: `http`, `grpc` or `metrics`.

    Triton speaks TLS over gRPC alone. With TLS the others stay on this machine.
    """
    address = ListenAddress.resolve(options.host)
    if options.tls is None or service == "grpc" or address.is_loopback:
        return address
    return ListenAddress.resolve("127.0.0.1")


def check_vulnerabilities(options: ServerOptions, installation: Installation) -> None:
    """Raises `ServingError` where a Triton with known faults would be open to other machines."""
    version = installation.version
    if options.allow_known_vulnerabilities or version is None or numbers(version) >= FIXED_VERSION:
        return
    if ListenAddress.resolve(options.host).is_loopback:
        return
    raise ServingError(
        f"--host is {options.host}, and Triton {version} ({installation.origin}) has known "
        "vulnerabilities: who reaches it can end it, and perhaps run code (docs/security.md). "
        "Serve in the container of deploy/, or on 127.0.0.1. --allow-known-vulnerabilities serves "
        "all the same, where only callers whom you trust can reach it."
    )


OWNED = {
    "model-repository": "DIRECTORY",
    "model-store": "DIRECTORY",
    "model-control-mode": "a restart, as models are loaded at the start alone",
    "http-address": "--host",
    "grpc-address": "--host",
    "metrics-address": "--host",
    "http-port": "--http-port",
    "grpc-port": "--grpc-port",
    "metrics-port": "--metrics-port",
    "log-file": "--log",
    "cache-config": "--cache-size",
    "grpc-use-ssl": "--tls-cert",
    "grpc-use-ssl-mutual": "--tls-client-ca",
    "grpc-server-cert": "--tls-cert",
    "grpc-server-key": "--tls-key",
    "grpc-root-cert": "--tls-client-ca",
    "grpc-restricted-protocol": "--token-file or --open",
    "http-restricted-api": "--token-file or --open",
}
"""Flags of Triton that `iblip serve` answers for, and its own option in their place."""

NEEDED = frozenset({"allow-http", "allow-grpc", "allow-metrics"})
"""Services without which nobody could watch the server."""


def check_triton_flags(flags: tuple[str, ...]) -> None:
    """Raises `OptionError` for a word that is no flag, or a flag that another option sets."""
    for flag in flags:
        name = flag_name(flag)
        if not flag.startswith("--") or not name:
            raise OptionError(f"{flag!r} is no flag of Triton. Expected --NAME=VALUE after `--`.")
        if name in OWNED:
            raise OptionError(f"{flag!r} cannot be given to Triton: use {OWNED[name]}.")
        if name in NEEDED:
            raise OptionError(f"{flag!r} cannot be given: `iblip serve` watches the server by it.")


def flag_name(flag: str) -> str:
    """`--grpc-keepalive-time=1` is `grpc-keepalive-time`."""
    return flag.removeprefix("--").partition("=")[0]
