"""`iblip demo`: everything once, on the small checkpoint that comes with the project."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from iblip.serving.cli.options import as_json, triton_option

if TYPE_CHECKING:
    from iblip.serving.cli.demo_questions import Asked


@click.command()
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="Checkpoint directory. Default: the demo checkpoint.",
)
@click.option("--precision", default="fp32", show_default=True, help="As of `export build`.")
@click.option("--output", type=click.Path(path_type=Path), help="As of `export build`.")
@click.option("--questions", "count", default=8, show_default=True, help="How many to ask.")
@click.option("--rebuild", is_flag=True, help="Build also where there is a current build.")
@triton_option
@as_json
def command(
    model: Path | None,
    precision: str,
    output: Path | None,
    count: int,
    rebuild: bool,
    triton: Path | None,
    json_: bool,
) -> None:
    """Build the demo checkpoint, serve it with Triton, ask held-out questions, and stop.

    The images show handwriting that the model was never trained on. Exit status 1 where fewer
    answers are right than the checkpoint claims.
    """
    from iblip.export.checkpoint.checkpoint import DEMO
    from iblip.export.checkpoint.source import ModelSource
    from iblip.export.examples import read_examples
    from iblip.serving.builder.build import build
    from iblip.serving.builder.options import BuildOptions
    from iblip.serving.cli.demo_questions import ask_all, is_current, spread, wanted_right
    from iblip.serving.cli.progress import Terminal
    from iblip.serving.cli.quiet import quiet_libraries
    from iblip.serving.client import Client
    from iblip.serving.repository.assembling import REPOSITORY
    from iblip.serving.server.options import ServerOptions
    from iblip.serving.server.server import TritonServer

    say = Terminal().note
    model = model or DEMO
    source = ModelSource(model=str(model))
    options = BuildOptions(source=source, precision=precision, output=output)
    questions = spread(read_examples(model / "examples"), count)
    directory = options.destination.absolute()
    started = time.monotonic()
    if rebuild or not is_current(directory, model):
        say(f"Building {model.name} ({precision}) …")
        quiet_libraries()
        build(options, Terminal())
        say(f"Built in {time.monotonic() - started:.1f} s: {directory}")
    else:
        say(f"Using the build {directory}")

    say("Starting Triton …")
    started = time.monotonic()
    server_options = ServerOptions(triton=triton)
    with TritonServer(directory / REPOSITORY, server_options, progress=_ignore) as server:
        say(f"Ready in {time.monotonic() - started:.1f} s on {server.grpc_url}")
        asked = []
        with Client(server.grpc_url) as client:
            for one in ask_all(client, questions):
                asked.append(one)
                if not json_:
                    click.echo(_shown(one))
    say("Triton stopped.")

    right, wanted = (
        sum(one.is_right for one in asked),
        wanted_right(len(asked)),
    )
    if json_:
        result = {"right": right, "asked": len(asked), "wanted": wanted}
        click.echo(json.dumps({**result, "answers": [one.to_json() for one in asked]}, indent=2))
    else:
        click.echo(f"\n{right} of {len(asked)} right.")
    if right < wanted:
        click.echo(f"error: the checkpoint claims at least {wanted} right of these", err=True)
        sys.exit(1)


def _shown(one: Asked) -> str:
    verdict = "right" if one.is_right else f"WRONG, expected: {one.question.answer}"
    times = f"first text {one.first_s * 1000:.0f} ms, whole {one.whole_s * 1000:.0f} ms"
    return (
        f"\n{_relative(one.question.image)}\n"
        f"  Q: {one.question.prompt}\n"
        f"  A: {one.text}   [{verdict}]\n"
        f"     {times}"
    )


def _relative(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _ignore(message: str) -> None:
    """The models that load are not told: the demo's own lines are enough."""
