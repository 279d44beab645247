"""The gateway beside `iblip serve`: whether it can be started, and with which flags."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from iblip.serving.cli.formatting import echo

if TYPE_CHECKING:
    from iblip.export.artifact.manifest import Manifest
    from iblip.serving.gateway.process import GatewayProcess
    from iblip.serving.server.server import TritonServer
    from iblip.serving.server.tls import ServerTLS

_TLS_FLAGS = ("tls-ca", "tls-cert", "tls-key", "tls-server-name")
"""Of `iblip gateway`, which also come as its environment variables."""


def check_gateway(port: int | None, keys: Path | None, tls: ServerTLS | None) -> None:
    """Refuses a gateway that could not be started, before anything else is."""
    from iblip.export.errors import OptionError

    if port is None:
        if keys is not None:
            raise OptionError("--openai-keys needs --openai-port")
        return
    import iblip.serving.gateway.running  # noqa: F401  # says which extra is missing

    if tls is not None:
        _gateway_tls(tls)
    if keys is not None:
        from iblip.serving.gateway.callers import read_callers

        read_callers(keys)


def gateway_process(host: str, port: int) -> GatewayProcess:
    """The gateway, which listens at once and is started later."""
    from iblip.serving.gateway.process import GatewayProcess

    return GatewayProcess(host, port, lambda text: echo(text, err=True))


def gateway_arguments(
    directory: Path,
    manifest: Manifest,
    server: TritonServer,
    token_file: Path | None,
    keys: Path | None,
) -> list[str]:
    """Of `iblip gateway`, for this server."""
    tokenizer = (directory / manifest.text.tokenizer).absolute()
    arguments = [f"{manifest.name}={server.grpc_url}", f"--tokenizer={manifest.name}={tokenizer}"]
    tls = {} if server.options.tls is None else _gateway_tls(server.options.tls)
    flags = {"token-file": token_file, "keys": keys, **tls}
    return [
        *arguments,
        *(f"--{name}={value}" for name, value in flags.items() if value is not None),
    ]


def _gateway_tls(tls: ServerTLS) -> dict[str, str | Path]:
    """Flags of `iblip gateway` with which it believes the server, unless its variables have them.

    It trusts the server's own certificate, under the first name that this is for.

    Raises:
        OptionError: the server wants a certificate of its callers, and the gateway has none; or its
            own has no name.
    """
    from iblip.export.errors import OptionError
    from iblip.serving.credentials import names_of_certificate

    variables = {name: f"IBLIP_GATEWAY_{name.replace('-', '_').upper()}" for name in _TLS_FLAGS}
    missing = [variables[name] for name in ("tls-cert", "tls-key")]
    missing = [name for name in missing if not os.environ.get(name)]
    if tls.client_authorities is not None and missing:
        raise OptionError(
            "--openai-port and --tls-client-ca: the gateway is a caller of the server too, and "
            f"needs a certificate. Set {' and '.join(missing)} to PEM files that one of these "
            "authorities has signed."
        )
    flags: dict[str, str | Path] = {"tls-ca": tls.certificate}
    if not os.environ.get(variables["tls-server-name"]):
        names = names_of_certificate(tls.certificate, tls.key)
        if not names:
            raise OptionError(
                f"the certificate {tls.certificate} has no name (subjectAltName), by which the "
                f"gateway could ask. Set {variables['tls-server-name']}."
            )
        flags["tls-server-name"] = names[0].replace("*", "gateway")
    return {name: value for name, value in flags.items() if not os.environ.get(variables[name])}
