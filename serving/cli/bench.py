"""`iblip bench`: how fast a build answers, or a server that runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from iblip.serving.cli.commands import Command
from iblip.serving.cli.formatting import echo, echo_json
from iblip.serving.cli.kinds import DIRECTORY, ExistingPath
from iblip.serving.cli.options import (
    CONNECTION,
    as_json,
    connection_from_flags,
    connection_options,
    triton_option,
)


@click.command(
    cls=Command,
    short_help="Measure how fast a build answers.",
    headings={"Server": (*CONNECTION, "triton")},
)
@click.argument("build", required=False, type=DIRECTORY)
@click.option(
    "--image",
    type=ExistingPath(),
    help="The image to ask about. Default: noise, another for each request.",
)
@click.option("--prompt", default="Describe the image.", show_default=True)
@click.option("-n", "--requests", default=64, show_default=True, type=click.IntRange(1))
@click.option(
    "-c",
    "--concurrency",
    default=8,
    show_default=True,
    type=click.IntRange(1),
    help="Requests under way at once.",
)
@click.option(
    "--max-new-tokens",
    default=32,
    show_default=True,
    type=click.IntRange(1),
    help="Tokens of every answer: none ends before.",
)
@connection_options
@triton_option
@as_json
def command(
    build: Path | None,
    image: Path | None,
    prompt: str,
    requests: int,
    concurrency: int,
    max_new_tokens: int,
    triton: Path | None,
    json_: bool,
    **flags: Any,
) -> None:
    """Measure how fast BUILD answers; without one, the server at --url.

    BUILD is served with Triton on free ports meanwhile. One request is asked before the clock
    starts. The figures of this project's own pages come from `python -m benchmarks`, in a checkout.
    """
    from iblip.serving.cli.load import measure
    from iblip.serving.cli.progress import command_progress

    connection = connection_from_flags(flags)
    progress = command_progress()
    with _server(build, triton) as url:
        figures = measure(
            connection | ({"url": url} if url else {}),
            image,
            prompt,
            progress,
            requests=requests,
            concurrency=concurrency,
            tokens=max_new_tokens,
        )
    if json_:
        echo_json(figures.to_json())
    else:
        echo(str(figures))


@contextlib.contextmanager
def _server(build: Path | None, triton: Path | None) -> Iterator[str | None]:
    """Serves the build, if there is one, and yields the server's address."""
    if build is None:
        yield None
        return
    from iblip.export.artifact.manifest import Manifest
    from iblip.serving.repository.assembling import REPOSITORY
    from iblip.serving.server.options import ServerOptions
    from iblip.serving.server.server import TritonServer

    Manifest.read(build)
    options = ServerOptions(triton=triton)
    with TritonServer(build / REPOSITORY, options, progress=lambda _: None) as server:
        yield server.grpc_url
