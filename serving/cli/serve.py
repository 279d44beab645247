"""`iblip serve`: runs Triton on a build."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iblip.serving.cli.formatting import echo
from iblip.serving.cli.options import as_json, triton_option
from iblip.serving.server.closed import CLOSED

if TYPE_CHECKING:
    from iblip.export.artifact.manifest import Manifest
    from iblip.serving.server.health import Health, HealthServer
    from iblip.serving.server.options import ServerOptions
    from iblip.serving.server.server import TritonServer
    from iblip.serving.server.tls import ServerTLS


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("triton_flags", metavar="[-- TRITON_FLAGS...]", nargs=-1)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--http-port", default=8000, show_default=True, help="0 picks any free port.")
@click.option("--grpc-port", default=8001, show_default=True, help="0 picks any free port.")
@click.option("--metrics-port", default=8002, show_default=True, help="0 picks any free port.")
@click.option(
    "--cache-size",
    "cache_mib",
    default=64,
    show_default=True,
    help="MiB for encoded images, so that an image is encoded once for many questions. 0: none.",
)
@click.option(
    "--max-http-body",
    "max_http_body_mib",
    default=64,
    show_default=True,
    help="Most MiB of a request over HTTP. 0: Triton's own HTTP server, with no wall before it.",
)
@triton_option
@click.option(
    "--vllm-python",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="vLLM's environment, or its Python, for a build that runs on vLLM. "
    "Default: $IBLIP_VLLM_PYTHON, then .venv-vllm.",
)
@click.option(
    "--tls-cert",
    type=click.Path(path_type=Path),
    metavar="PEM",
    help="The server's certificate: gRPC speaks TLS. Triton has no TLS for HTTP and metrics, which "
    "then listen on 127.0.0.1 alone.",
)
@click.option(
    "--tls-key", type=click.Path(path_type=Path), metavar="PEM", help="The certificate's key."
)
@click.option(
    "--tls-client-ca",
    type=click.Path(path_type=Path),
    metavar="PEM",
    help="Mutual TLS: callers need a certificate that one of these authorities has signed.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File with a token that callers must send; without one anybody may ask.",
)
@click.option(
    "--open",
    "opened",
    multiple=True,
    type=click.Choice(CLOSED),
    help="Let any caller use what is closed. Repeatable.",
)
@click.option(
    "--allow-known-vulnerabilities",
    is_flag=True,
    help="Let other machines reach a Triton that has some, as the one from pip has "
    "(docs/security.md).",
)
@click.option(
    "--health-port",
    default=8003,
    show_default=True,
    help="Where probes ask: /health/live, /health/ready, /health/startup. 0 picks any free port.",
)
@click.option(
    "--max-restarts",
    default=5,
    show_default=True,
    help="Restarts in a row of a server that does not stay ready for a minute; then give up.",
)
@click.option("--no-restart", is_flag=True, help="End with status 1 where it would be restarted.")
@click.option(
    "--default-timeout",
    "default_timeout_s",
    type=float,
    metavar="SECONDS",
    help="Deadline of requests that bring no timeout. Default: none.",
)
@click.option(
    "--caller-header",
    default="",
    metavar="NAME",
    help="Header of gRPC and HTTP by which callers are told apart, such as authorization.",
)
@click.option(
    "--max-caller-requests", type=int, help="Requests that one caller may have under way."
)
@click.option(
    "--max-caller-tokens",
    type=int,
    help="Tokens that the requests of one caller may still generate, together.",
)
@click.option(
    "--print-command",
    is_flag=True,
    help="Print the command that starts Triton, with its environment variables, and exit.",
)
@click.option(
    "--log",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Append the server's log to this file; - is standard error.",
)
@click.option(
    "--ready-timeout", "ready_timeout_s", default=600.0, help="Seconds to wait until it is ready."
)
@as_json
def command(
    directory: Path,
    triton_flags: tuple[str, ...],
    json_: bool,
    vllm_python: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    token_file: Path | None,
    print_command: bool,
    health_port: int,
    max_restarts: int,
    no_restart: bool,
    default_timeout_s: float | None,
    caller_header: str,
    max_caller_requests: int | None,
    max_caller_tokens: int | None,
    **flags: Any,
) -> None:
    """Serve the build in DIRECTORY with NVIDIA Triton, until Ctrl-C.

    Flags after -- are handed to Triton, such as `iblip serve DIRECTORY -- --log-verbose=1`.
    """
    from iblip.export.artifact.manifest import MEANS_NOTHING, Manifest
    from iblip.serving.credentials import read_token
    from iblip.serving.launching import check_servable, environment_of_models
    from iblip.serving.repository.assembling import REPOSITORY
    from iblip.serving.repository.native import flags_for
    from iblip.serving.server.access import check_triton_flags
    from iblip.serving.server.health import Health
    from iblip.serving.server.memory import memory_of_build
    from iblip.serving.server.options import ServerOptions
    from iblip.serving.server.supervisor import RestartPolicy, Supervisor
    from iblip.serving.steps.policy import Policy

    manifest = Manifest.read(directory)
    check_servable(directory, manifest, flags["triton"])
    if flags["log"] == Path("-"):
        flags |= {"log": None, "echo_log": True}
    requests = Policy(
        default_timeout_s=default_timeout_s,
        caller_header=caller_header,
        max_caller_requests=max_caller_requests,
        max_caller_tokens=max_caller_tokens,
    )
    check_triton_flags(triton_flags)
    options = ServerOptions(
        policy=requests,
        tls=_tls(tls_cert, tls_key, tls_client_ca),
        token=None if token_file is None else read_token(token_file),
        environment=environment_of_models(manifest, vllm_python),
        extra=flags_for(manifest) + triton_flags,
        **flags,
    )
    if print_command:
        _print_command(directory / REPOSITORY, options, json_)
        return
    say = (lambda _: None) if json_ else echo
    if manifest.synthetic:
        echo(MEANS_NOTHING, err=True)
    memory = memory_of_build(directory, manifest)
    if memory is not None and memory.advice:
        echo(memory.advice, err=True)
    # SIGINT too: a shell that starts this in the background has it ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    health, policy = Health(), RestartPolicy(limit=0 if no_restart else max_restarts)
    supervisor = Supervisor(
        directory / REPOSITORY, options, policy=policy, health=health, progress=say
    )
    try:
        with _health_server(health, options.host, health_port) as probes:
            supervisor.run(lambda server: _announce(server, probes, manifest, json_))
    except KeyboardInterrupt:
        say("\nStopped.")


def _tls(certificate: Path | None, key: Path | None, authorities: Path | None) -> ServerTLS | None:
    from iblip.export.errors import OptionError
    from iblip.serving.server.tls import ServerTLS

    if certificate is not None and key is not None:
        return ServerTLS(certificate=certificate, key=key, client_authorities=authorities)
    if certificate is None and key is None and authorities is None:
        return None
    raise OptionError("TLS needs both --tls-cert and --tls-key; --tls-client-ca is in addition")


def _health_server(health: Health, host: str, port: int) -> HealthServer:
    from iblip.export.errors import ServingError
    from iblip.serving.server.health import HealthServer

    try:
        return HealthServer(health, host, port)
    except OSError as error:
        raise ServingError(
            f"port {port} (health) of {host} cannot be used: {error.strerror}. "
            "Give another with --health-port, or 0 for any free one."
        ) from error


def _print_command(repository: Path, options: ServerOptions, json_: bool) -> None:
    from iblip.export.errors import OptionError
    from iblip.serving.server.command import server_command

    ports = {"http": options.http_port, "grpc": options.grpc_port, "metrics": options.metrics_port}
    for name, port in ports.items():
        if port == 0:
            raise OptionError(
                f"--{name}-port is 0, any free port; --print-command needs the number of a port."
            )
    shown = server_command(repository, options, ports)
    if json_:
        echo(
            json.dumps(
                {
                    "command": shown.arguments,
                    "environment": shown.changes,
                    "directory": str(shown.directory),
                }
            )
        )
    else:
        echo(str(shown))


def _announce(server: TritonServer, probes: HealthServer, manifest: Manifest, json_: bool) -> None:
    urls = {
        "grpc": server.grpc_url,
        "http": server.http_url,
        "metrics": server.metrics_url,
        "health": f"http://{server.grpc_url.rpartition(':')[0]}:{probes.port}/health/ready",
    }
    if json_:
        facts = {"name": manifest.name, "synthetic": manifest.synthetic}
        echo(json.dumps({**facts, "ready_s": round(server.ready_s, 3), **urls}))
        return
    port = "" if server.grpc_url == "127.0.0.1:8001" else f" --url {server.grpc_url}"
    port += " --tls-ca PEM" if server.options.tls else ""
    port += " --token-file FILE" if server.options.token else ""
    echo(
        f"\n{manifest.name} is ready ({server.ready_s:.1f} s).\n"
        f"  gRPC     {urls['grpc']}\n"
        f"  HTTP     {urls['http']}\n"
        f"  metrics  {urls['metrics']}\n"
        f"  health   {urls['health']}\n\n"
        f'Ask it:   iblip ask IMAGE "What is in the image?"{port}\n'
        "Stop it:  Ctrl-C"
    )


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
