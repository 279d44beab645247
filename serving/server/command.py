"""The command that starts Triton: one, whoever starts it, here or in a container.

`iblip serve` starts it and watches over it (`serving.server.supervisor`), and `--print-command`
shows it.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import iblip
from iblip.engines.language_model.vllm.environment import DIRECTORY, VARIABLE
from iblip.export.errors import ServingError
from iblip.export.system.cache_directory import VARIABLE as CACHE_VARIABLE
from iblip.serving.server.access import (
    access_flags,
    address_of,
    check_vulnerabilities,
    flag_name,
)
from iblip.serving.server.installation import Installation, find_triton
from iblip.serving.server.outdated import (
    how_to_rebuild,
    models_without_vision_cache,
    outdated_models,
)
from iblip.serving.server.wall.command import SERVICES, triton_address, wall_arguments
from iblip.serving.steps.policy import CALL_KEY_VARIABLE
from iblip.serving.wire.names import CALLS, CANCEL_KEY

if TYPE_CHECKING:
    from iblip.serving.server.options import ServerOptions

MIB = 2**20


SCRATCH = "iblip-triton-"
"""How the folder of a server's own files begins."""

KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = 20_000, 10_000
"""Milliseconds between pings to a caller, and until one without a reply ends the connection."""

PATHS = (VARIABLE, CACHE_VARIABLE, "PYTHONPATH")
"""Variables that hold paths, which the server would read from another working directory."""


@dataclass(frozen=True, kw_only=True)
class ServerCommand:
    """A command line, and the whole environment that it runs in.

    Attributes:
        arguments: the program, and what it is given.
        environment: every variable.
        directory: the working directory.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    directory: Path

    @property
    def changes(self) -> dict[str, str]:
        """The variables that are not as they are in this process."""
        return {k: v for k, v in self.environment.items() if os.environ.get(k) != v}

    def __str__(self) -> str:
        """The command, quoted for a shell."""
        changes = [f"{name}={value}" for name, value in self.changes.items()]
        return shlex.join(["env", f"--chdir={self.directory}", *changes, *self.arguments])


def server_command(
    repository: Path,
    options: ServerOptions,
    ports: Mapping[str, int],
    scratch: Path | None = None,
) -> ServerCommand:
    """What starts a server, which logs to its own stderr.

    The server's working directory is a folder of links, one of them to this package. Python models
    look there first for what they import, in any Triton: `PYTHONPATH` is not read by the stub that
    `nvidia-pytriton` carries.

    Args:
        repository: the folder of models.
        options: all but its log and the times that somebody waits.
        ports: of `http`, `grpc` and `metrics`.
        scratch: an empty folder for the links; `None` makes one among the temporary files, which
            stays.

    Raises:
        ServingError: there is no repository, one that older code made or that does not know of
            the vision cache that is asked for, or no Triton.
    """
    check_repository(repository)
    if options.vision_cache is not None:
        check_vision_cache(repository)
    installation = find_triton(options.triton)
    check_vulnerabilities(options, installation)
    if scratch is None:
        scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=scratch_parent()))
    package = Path(iblip.__file__).parent
    (scratch / package.name).symlink_to(package)
    arguments = triton_arguments(repository, options, ports, installation, scratch)
    if installation.walled:
        hosts = {name: address_of(name, options).number for name in ports}
        most = options.max_http_body_mib * MIB
        header = options.policy.caller_header
        arguments = [*wall_arguments(hosts, ports, most, scratch, header), *arguments]
    return ServerCommand(
        arguments=tuple(arguments),
        environment=triton_environment(installation, options),
        directory=scratch,
    )


def triton_arguments(
    repository: Path,
    options: ServerOptions,
    ports: Mapping[str, int],
    installation: Installation,
    scratch: Path,
) -> list[str]:
    """`tritonserver` and every flag that it is started with."""
    flags = {
        "model-repository": _plain(repository.absolute(), scratch),
        "model-control-mode": "none",
        "exit-on-error": "true",
        "strict-readiness": "true",
        "exit-timeout-secs": max(1, int(options.stop_timeout_s)),
        "metrics-config": "summary_latencies=true",
        # Clients ping on quiet connections; Triton's own default takes that for an attack.
        "grpc-http2-min-recv-ping-interval-without-data": 5000,
        "grpc-keepalive-permit-without-calls": "true",
        # A caller that has vanished or stands still is let go, and with it what it did not read.
        "grpc-keepalive-time": KEEPALIVE_MS,
        "grpc-keepalive-timeout": KEEPALIVE_TIMEOUT_MS,
        "grpc-http2-max-pings-without-data": 0,
    }
    for name, port in ports.items():
        flags[f"{name}-address"] = address_of(name, options).flag(name)
        flags[f"{name}-port"] = port
    # What becomes a parameter of the request: who asks, and the wall's secret for cancelling.
    header = [re.escape(options.policy.caller_header)] if options.policy.caller_header else []
    for name, headers in (("grpc", header), ("http", [*header, CANCEL_KEY])):
        if headers:
            flags[f"{name}-header-forward-pattern"] = f"(?i)({'|'.join(headers)})"
    for name in SERVICES if installation.walled and options.max_http_body_mib else ():
        flags[f"{name}-address"] = triton_address(name)
    if options.cache_mib:
        flags["cache-config"] = f"local,size={options.cache_mib * MIB}"
    given = {flag_name(flag) for flag in options.extra}
    return [
        str(installation.binary),
        *(f"--{name}={value}" for name, value in flags.items() if name not in given),
        "--disable-auto-complete-config",
        f"--backend-config=python,thread-pool-size={CALLS}",
        *access_flags(options),
        *installation.arguments(scratch),
        *options.extra,
    ]


def scratch_parent() -> Path:
    """The folder for a server's own files: that of temporary files, if its name is plain.

    Raises:
        ServingError: its name is not, and `/tmp` cannot be used.
    """
    usual, other = Path(tempfile.gettempdir()).absolute(), Path("/tmp")
    if is_plain(usual):
        return usual
    if os.access(other, os.W_OK | os.X_OK):
        return other
    raise ServingError(
        f"the folder for temporary files is {str(usual)!r}; Triton hands paths to a shell as they "
        "are, so its name must be of ASCII letters, digits and . _ - alone. Set TMPDIR to another."
    )


def is_plain(path: Path) -> bool:
    """Whether a path is the same to a shell without quotes, in every locale."""
    return shlex.quote(str(path)) == str(path)


def _plain(repository: Path, scratch: Path) -> Path:
    """The repository under a plain name: Triton starts Python models by `bash -c`, unquoted."""
    if is_plain(repository):
        return repository
    link = scratch / repository.name if is_plain(Path(repository.name)) else scratch / "models"
    link.symlink_to(repository)
    return link


def triton_environment(installation: Installation, options: ServerOptions) -> dict[str, str]:
    """Every variable of the server's process."""
    environment = {**os.environ, **options.policy.to_environment(), **options.environment}
    if options.vision_cache is not None:
        environment |= options.vision_cache.to_environment()
    environment[CALL_KEY_VARIABLE] = secrets.token_hex(16)
    if DIRECTORY.is_dir():  # models run elsewhere, and would not find it
        environment.setdefault(VARIABLE, str(DIRECTORY))
    for name in PATHS:
        if environment.get(name):
            paths = environment[name].split(os.pathsep)
            environment[name] = os.pathsep.join(map(os.path.abspath, paths))
    return installation.environment(environment)


def check_repository(repository: Path) -> None:
    """Raises `ServingError` where there is no folder of models, or older code wrote its models."""
    if not repository.is_dir():
        message = f"there is no model repository {repository}."
        raise ServingError(f"{message} Build one with `iblip build`.")
    if models := outdated_models(repository):
        raise ServingError(
            f"{repository} was made by a version from before this project was one package: the "
            f"model.py of {', '.join(models)} imports `serving`, which is `iblip.serving` now. "
            f"{how_to_rebuild(repository)}"
        )


def check_vision_cache(repository: Path) -> None:
    """Raises `ServingError` where a model would not look into a vision cache, and say nothing."""
    if models := models_without_vision_cache(repository):
        raise ServingError(
            f"--vision-cache is given, and {repository} was made by a version that has none: the "
            f"model.py of {', '.join(models)} would not use it. {how_to_rebuild(repository)}"
        )
