"""`iblip gateway`: OpenAI's chat completions in front of running servers."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iblip.serving.cli.commands import Command
from iblip.serving.cli.formatting import echo, echo_json
from iblip.serving.cli.kinds import PATH
from iblip.serving.cli.options import ACCESS, access_from_flags, access_options, as_json

if TYPE_CHECKING:
    from iblip.serving.gateway.options import GatewayOptions
    from iblip.serving.gateway.servers import ServedModel

HEADINGS = {
    "Addresses": ("host", "port", "descriptor"),
    "Callers": (
        "keys",
        "max_open",
        "max_body_mib",
        "timeout_s",
        "image_hosts",
        "cors_origins",
        "page",
        "access_log",
    ),
    "Servers": (*ACCESS, "tokenizers"),
}


@click.command(cls=Command, short_help="Serve OpenAI's API in front of servers.", headings=HEADINGS)
@click.argument("servers", metavar="[NAME=]URL...", nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="0 picks any free port.",
)
@click.option(
    "--socket",
    "descriptor",
    type=int,
    metavar="FD",
    help="Take this open socket instead, and stop at the end of standard input: for a supervisor.",
)
@click.option(
    "--keys",
    type=PATH,
    metavar="FILE",
    help="File of keys, one a line; without it anybody may ask. A key may be followed by "
    "name=NAME, open=NUMBER and per_minute=NUMBER.",
)
@click.option("--max-open", default=1024, show_default=True, help="Most requests open at once.")
@click.option(
    "--max-body", "max_body_mib", default=32, show_default=True, help="Most MiB of a request."
)
@click.option(
    "--timeout",
    "timeout_s",
    type=float,
    default=600.0,
    show_default=True,
    help="Seconds for an answer whose request names none.",
)
@click.option(
    "--allow-image-host",
    "image_hosts",
    multiple=True,
    metavar="HOST",
    help="Fetch https: images from this host, or from all of a domain (.example.org). Repeatable.",
)
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    metavar="ORIGIN",
    help="Let pages of this origin ask from a browser. Repeatable.",
)
@click.option(
    "--page/--no-page", default=True, show_default=True, help="Show browsers a page at /."
)
@click.option(
    "--access-log",
    type=PATH,
    metavar="FILE",
    help="Write a line of JSON for each request; - is standard error.",
)
@click.option(
    "--tokenizer",
    "tokenizers",
    multiple=True,
    metavar="NAME=FILE",
    help="A build's text/tokenizer.json, for the texts of log-probabilities. Repeatable.",
)
@access_options
@as_json
def command(
    servers: tuple[str, ...],
    host: str,
    port: int,
    descriptor: int | None,
    access_log: Path | None,
    tokenizers: tuple[str, ...],
    json_: bool,
    **flags: Any,
) -> None:
    """Answer OpenAI's chat completions with the servers at URL (host:port of gRPC).

    NAME is what a request's `model` says; without it, it is the name of the server's build.
    """
    from iblip.serving.gateway.app import app_of
    from iblip.serving.gateway.callers import read_callers
    from iblip.serving.gateway.listening import listening, url_of
    from iblip.serving.gateway.options import GatewayOptions
    from iblip.serving.gateway.running import log_writer, run
    from iblip.serving.gateway.servers import ServedModels

    access = access_from_flags(flags)
    options = GatewayOptions(**flags)
    callers = None if options.keys is None else read_callers(options.keys)
    models = _models(servers, tokenizers, access, options.timeout_s)
    with ExitStack() as closing:
        is_child = descriptor is not None
        one = listening(host, port) if descriptor is None else socket.socket(fileno=descriptor)
        write = log_writer(access_log, closing)  # where the port is taken, it makes no file
        app = app_of(ServedModels(models), options, callers, write)
        if not is_child:
            _announce(url_of(one), [model.name for model in models], options, json_)
        try:
            run(app, one, until_eof=is_child)
        except KeyboardInterrupt:
            if not json_:
                echo("Stopped.")


def _models(
    servers: tuple[str, ...],
    tokenizers: tuple[str, ...],
    access: dict[str, Any],
    timeout_s: float | None,
) -> list[ServedModel]:
    """The servers that are named; asks those without a name for that of their build.

    Raises:
        OptionError: a name is there twice, or a tokenizer is of no server.
        ClientError: a server without a name does not answer.
    """
    from iblip.export.errors import OptionError
    from iblip.serving.client.asynchronous import AsyncClient
    from iblip.serving.client.patience import Timeout
    from iblip.serving.gateway.servers import ServedModel
    from iblip.serving.gateway.token_texts import TokenTexts
    from iblip.serving.gateway.tracing import trace_headers

    files = {name: path for name, _, path in (word.rpartition("=") for word in tokenizers)}
    timeout = Timeout(connect=0, total=timeout_s)  # nothing is repeated: callers do that
    models: list[ServedModel] = []
    for word in servers:
        name, _, url = word.rpartition("=")
        client = AsyncClient(url, timeout=timeout, retries=0, metadata=trace_headers, **access)
        name = name or asyncio.run(_name(client))
        file = files.pop(name, None)
        tokens = TokenTexts.from_file(None if file is None else Path(file))
        if any(model.name == name for model in models):
            raise OptionError(f"{name} is there twice; give each server another name: NAME=URL")
        models.append(ServedModel(name=name, client=client, tokens=tokens))
    if files:
        raise OptionError(f"--tokenizer names {', '.join(files)!r}, which is no server here")
    return models


async def _name(client: Any) -> str:
    contract = await client.contract()
    return str(contract.build.name)


def _announce(url: str, names: list[str], options: GatewayOptions, json_: bool) -> None:
    if json_:
        echo_json({"openai": f"{url}/v1", "models": names}, indent=None)
        return
    page = f"Page:     {url}/\n" if options.page else ""
    echo(f"The gateway is ready: {url}/v1\n{page}Models:   {', '.join(names)}\nStop it:  Ctrl-C")
