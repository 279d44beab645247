"""`iblip serve`: runs Triton on a build."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iblip.serving.cli.commands import Command, Interrupted
from iblip.serving.cli.formatting import echo, echo_json
from iblip.serving.cli.kinds import MODELS, PATH, PRECISION
from iblip.serving.cli.options import as_json, triton_option, vision_cache_options
from iblip.serving.cli.serve_gateway import check_gateway, gateway_arguments, gateway_process
from iblip.serving.server.closed import CLOSED

if TYPE_CHECKING:
    from iblip.export.artifact.manifest import Manifest
    from iblip.serving.gateway.process import GatewayProcess
    from iblip.serving.server.health import Health, HealthServer
    from iblip.serving.server.options import ServerOptions
    from iblip.serving.server.server import TritonServer
    from iblip.serving.server.tls import ServerTLS


HEADINGS = {
    "Addresses": ("host", "http_port", "grpc_port", "metrics_port", "health_port", "openai_port"),
    "Access": (
        "tls_cert",
        "tls_key",
        "tls_client_ca",
        "token_file",
        "openai_keys",
        "opened",
        "allow_known_vulnerabilities",
    ),
    "Requests": (
        "cache_mib",
        "vision_cache",
        "vision_cache_mib",
        "max_http_body_mib",
        "default_timeout_s",
        "caller_header",
        "max_caller_requests",
        "max_caller_tokens",
    ),
    "Building first, where a model is given": ("precision", "output", "revision"),
    "Running": (
        "triton",
        "vllm_python",
        "max_restarts",
        "no_restart",
        "ready_timeout_s",
        "log",
        "print_command",
    ),
}
"""Heading in `--help` to the options under it."""


@click.command(cls=Command, short_help="Serve a build or a model with Triton.", headings=HEADINGS)
@click.argument("build_or_model", metavar="BUILD|MODEL", type=MODELS)
@click.argument("triton_flags", metavar="[-- TRITON_FLAGS...]", nargs=-1)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--http-port",
    "--port",
    "http_port",
    default=8000,
    show_default=True,
    help="0 picks any free port.",
)
@click.option("--grpc-port", default=8001, show_default=True, help="0 picks any free port.")
@click.option("--metrics-port", default=8002, show_default=True, help="0 picks any free port.")
@click.option(
    "--cache-size",
    "cache_mib",
    default=64,
    show_default=True,
    help="MiB for encoded images, so that an image is encoded once for many questions. 0: none.",
)
@vision_cache_options
@click.option(
    "--max-http-body",
    "max_http_body_mib",
    default=64,
    show_default=True,
    help="Most MiB of a request over HTTP. 0: Triton's own HTTP server, without the filter.",
)
@triton_option
@click.option(
    "--vllm-python",
    type=PATH,
    metavar="PATH",
    help="vLLM's environment, or its Python, for a build that runs on vLLM. "
    "Default: $IBLIP_VLLM_PYTHON, then .venv-vllm.",
)
@click.option(
    "--tls-cert",
    type=PATH,
    metavar="PEM",
    help="The server's certificate: gRPC speaks TLS. Triton has no TLS for HTTP and metrics, which "
    "then listen on 127.0.0.1 alone.",
)
@click.option("--tls-key", type=PATH, metavar="PEM", help="The certificate's key.")
@click.option(
    "--tls-client-ca",
    type=PATH,
    metavar="PEM",
    help="Mutual TLS: callers need a certificate that one of these authorities has signed.",
)
@click.option(
    "--token-file",
    type=PATH,
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
    help="Where probes ask: /health/live, /health/ready, /health/startup; and Prometheus: "
    "/metrics. 0 picks any free port.",
)
@click.option(
    "--openai-port",
    type=click.IntRange(0, 65535),
    help="Also answer OpenAI's chat completions there: `iblip gateway` beside the server. 0 picks "
    "any free port.",
)
@click.option(
    "--openai-keys",
    type=PATH,
    metavar="FILE",
    help="Keys of the gateway's callers, as in `iblip gateway --keys`. Default: --token-file.",
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
    type=PATH,
    help="Append the server's log to this file; - is standard error.",
)
@click.option(
    "--ready-timeout", "ready_timeout_s", default=600.0, help="Seconds to wait until it is ready."
)
@click.option(
    "-p",
    "--precision",
    "--dtype",
    "precision",
    type=PRECISION,
    help="As in `iblip build`. Default: fp32.",
)
@click.option("-o", "--output", type=PATH, help="As in `iblip build`.")
@click.option("--revision", help="As in `iblip build`.")
@as_json
def command(
    build_or_model: str,
    triton_flags: tuple[str, ...],
    json_: bool,
    vllm_python: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    token_file: Path | None,
    print_command: bool,
    health_port: int,
    openai_port: int | None,
    openai_keys: Path | None,
    max_restarts: int,
    no_restart: bool,
    default_timeout_s: float | None,
    caller_header: str,
    max_caller_requests: int | None,
    max_caller_tokens: int | None,
    precision: str | None,
    output: Path | None,
    revision: str | None,
    **flags: Any,
) -> None:
    """Serve BUILD with NVIDIA Triton, until Ctrl-C.

    A MODEL (a checkpoint directory, or ORG/NAME of the hub) is built first, unless that has been
    done; `iblip build` has more options for that. Flags after -- are handed to Triton, such as
    `iblip serve BUILD -- --log-verbose=1`.
    """
    from iblip.engines.vision_cache.directory import cache_directory
    from iblip.export.artifact.manifest import MEANS_NOTHING, Manifest
    from iblip.serving.credentials import read_token
    from iblip.serving.launching import check_servable, environment_of_models
    from iblip.serving.repository.assembling import REPOSITORY
    from iblip.serving.repository.native import flags_for
    from iblip.serving.server.access import check_triton_flags, check_vulnerabilities
    from iblip.serving.server.health import Health
    from iblip.serving.server.installation import find_triton
    from iblip.serving.server.memory import memory_of_build
    from iblip.serving.server.options import ServerOptions, check_log
    from iblip.serving.server.supervisor import RestartPolicy, Supervisor
    from iblip.serving.steps.policy import Policy

    building = {"precision": precision, "output": output, "revision": revision}
    found = _find_build(build_or_model, building)
    triton = find_triton(flags["triton"])
    if flags["log"] == Path("-"):
        flags |= {"log": None, "echo_log": True}
    if flags["log"] is not None:
        check_log(flags["log"])
    requests = Policy(
        default_timeout_s=default_timeout_s,
        caller_header=caller_header,
        max_caller_requests=max_caller_requests,
        max_caller_tokens=max_caller_tokens,
    )
    check_triton_flags(triton_flags)
    mib = flags.pop("vision_cache_mib")
    flags["vision_cache"] = cache_directory(flags["vision_cache"], mib)
    tls = _tls(tls_cert, tls_key, tls_client_ca)
    token = None if token_file is None else read_token(token_file)
    check_gateway(openai_port, openai_keys, tls)
    options = ServerOptions(policy=requests, tls=tls, token=token, **flags)
    check_vulnerabilities(options, triton)
    # All that is wrong with the call has been said before a build, which may take hours.
    directory = found or _build_model(build_or_model, building)
    manifest = Manifest.read(directory)
    check_servable(directory, manifest, flags["triton"])
    options = replace(
        options,
        environment=environment_of_models(manifest, vllm_python),
        extra=flags_for(manifest) + triton_flags,
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
        with ExitStack() as running:
            probes = running.enter_context(_health_server(health, options.host, health_port))
            gateway = None
            if openai_port is not None:
                gateway = running.enter_context(gateway_process(options.host, openai_port))

            def announce(server: TritonServer) -> None:
                if gateway is not None:
                    keys = openai_keys or token_file
                    gateway.start(gateway_arguments(directory, manifest, server, token_file, keys))
                _announce(server, probes, gateway, manifest, json_)

            supervisor.run(announce)
    except KeyboardInterrupt:
        say("Stopped.")


def _find_build(word: str, building: Mapping[str, Any]) -> Path | None:
    """The build that is named; `None` where it is a model.

    Raises:
        OptionError: it is neither, or it is a build and an option is for building.
    """
    from iblip.export.artifact.manifest import MANIFEST
    from iblip.export.checkpoint.source import ModelSource
    from iblip.export.errors import OptionError

    path = Path(word)
    given = [name for name, value in building.items() if value is not None]
    is_model = (path / "config.json").is_file() and not (path / MANIFEST).is_file()
    if path.is_dir() and not is_model:
        if given:
            raise OptionError(f"--{given[0]} is for a model that is built first; {word} is a build")
        return path
    if not (path.is_dir() or ModelSource(model=word).is_on_hub):
        raise OptionError(
            f"there is no build and no model {word}. Give the directory of a build, of a checkpoint"
            " in Hugging Face form, or ORG/NAME of a model of the hub."
        )
    return None


def _build_model(word: str, building: Mapping[str, Any]) -> Path:
    """Builds a model with the defaults of `iblip build`, unless that has been done."""
    from iblip.export.checkpoint.source import ModelSource
    from iblip.serving.builder.build import build
    from iblip.serving.builder.options import BuildOptions
    from iblip.serving.cli.progress import command_progress
    from iblip.serving.cli.quiet import quiet_libraries

    quiet_libraries()
    options = BuildOptions(
        source=ModelSource(model=word, revision=building["revision"]),
        output=building["output"],
        precision=building["precision"] or "fp32",
    )
    try:
        return build(options, command_progress())
    except KeyboardInterrupt:
        raise Interrupted(f"Nothing was written to {options.destination}.") from None


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
        echo_json(
            {
                "command": shown.arguments,
                "environment": shown.changes,
                "directory": str(shown.directory),
            },
            indent=None,
        )
    else:
        echo(str(shown))


def _announce(
    server: TritonServer,
    probes: HealthServer,
    gateway: GatewayProcess | None,
    manifest: Manifest,
    json_: bool,
) -> None:
    urls = {
        "grpc": server.grpc_url,
        "http": server.http_url,
        "metrics": server.metrics_url,
        "health": f"http://{server.grpc_url.rpartition(':')[0]}:{probes.port}/health/ready",
        **({} if gateway is None else {"openai": f"{gateway.url}/v1"}),
    }
    if json_:
        facts = {"name": manifest.name, "synthetic": manifest.synthetic}
        echo_json({**facts, "ready_s": round(server.ready_s, 3), **urls}, indent=None)
        return
    openai = "" if gateway is None else f"  OpenAI   {urls['openai']}\n"
    port = "" if server.grpc_url == "127.0.0.1:8001" else f" --url {server.grpc_url}"
    port += " --tls-ca PEM" if server.options.tls else ""
    port += " --token-file FILE" if server.options.token else ""
    echo(
        f"\n{manifest.name} is ready ({server.ready_s:.1f} s).\n"
        f"  gRPC     {urls['grpc']}\n"
        f"  HTTP     {urls['http']}\n"
        f"  metrics  {urls['metrics']}\n"
        f"  health   {urls['health']}\n{openai}\n"
        f'Ask it:   iblip ask IMAGE "What is in the image?"{port}\n'
        "Stop it:  Ctrl-C"
    )


def _interrupt(number: int, frame: object) -> None:
    os.write(2, b"\nStopping: answers that are being written may end.\n")  # as a handler may
    raise KeyboardInterrupt
