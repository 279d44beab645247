"""`iblip demo`: the whole way once, on the small checkpoint that comes with the project."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from iblip.serving.cli.commands import Command
from iblip.serving.cli.formatting import echo, echo_json, echo_verdicts
from iblip.serving.cli.kinds import DIRECTORY, PATH, PRECISION
from iblip.serving.cli.options import as_json, triton_option

if TYPE_CHECKING:
    from iblip.export.examples import Example
    from iblip.serving.builder.options import BuildOptions
    from iblip.serving.cli.demo_questions import Result


@click.command(cls=Command, short_help="Build, serve and ask the demo checkpoint.")
@click.option(
    "--model",
    type=DIRECTORY,
    help="Checkpoint directory. Default: the demo checkpoint.",
)
@click.option(
    "--precision",
    "--dtype",
    "precision",
    type=PRECISION,
    default="fp32",
    show_default=True,
    help="As in `iblip build`.",
)
@click.option("--output", type=PATH, help="As in `iblip build`.")
@click.option(
    "--questions",
    "count",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Number of questions.",
)
@click.option("--rebuild", is_flag=True, help="Build even if there is a current build.")
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

    The images show handwriting that the model was never trained on. The exit status is 1 if fewer
    answers are right than the checkpoint claims.
    """
    from iblip.export.checkpoint.demo import demo_checkpoint
    from iblip.export.checkpoint.source import ModelSource
    from iblip.export.examples import read_examples
    from iblip.serving.builder.options import BuildOptions
    from iblip.serving.cli.demo_questions import choose_questions, least_right
    from iblip.serving.server.installation import find_triton

    find_triton(triton)  # before a build that nobody could serve
    model = model or demo_checkpoint()
    source = ModelSource(model=str(model))
    options = BuildOptions(source=source, precision=precision, output=output)
    questions = choose_questions(read_examples(model / "examples"), count)
    directory = options.destination.absolute()
    _build(options, model, rebuild)
    results = _ask(directory, questions, triton, json_)

    right, least = sum(result.is_right for result in results), least_right(len(results))
    if json_:
        summary = {"right": right, "asked": len(results), "wanted": least}
        answers = [result.to_json() for result in results]
        echo_json({**summary, "answers": answers})
    else:
        echo(f"\n{right} of {len(results)} right.")
    if right < least:
        echo_verdicts(f"error: the checkpoint claims at least {least} right of these", err=True)
        click.get_current_context().exit(1)


def _build(options: BuildOptions, model: Path, rebuild: bool) -> None:
    from iblip.serving.builder.build import build
    from iblip.serving.cli.demo_questions import is_current
    from iblip.serving.cli.progress import command_progress
    from iblip.serving.cli.quiet import quiet_libraries

    terminal, directory = command_progress(), options.destination.absolute()
    if not rebuild and is_current(directory, model):
        terminal.note(f"Using the build {directory}")
        return
    started = time.monotonic()
    terminal.note(f"Building {model.name} ({options.precision}) …")
    quiet_libraries()
    build(options, terminal)
    terminal.note(f"Built in {time.monotonic() - started:.1f} s: {directory}")


def _ask(
    directory: Path, questions: Sequence[Example], triton: Path | None, json_: bool
) -> list[Result]:
    """Serves the build and asks the questions; shows each answer unless the output is JSON."""
    from iblip.serving.cli.demo_questions import ask_all
    from iblip.serving.cli.progress import command_progress
    from iblip.serving.client import Client
    from iblip.serving.repository.assembling import REPOSITORY
    from iblip.serving.server.options import ServerOptions
    from iblip.serving.server.server import TritonServer

    note = command_progress().note
    note("Starting Triton …")
    started = time.monotonic()
    results = []
    with TritonServer(
        directory / REPOSITORY, ServerOptions(triton=triton), progress=_ignore
    ) as server:
        note(f"Ready in {time.monotonic() - started:.1f} s on {server.grpc_url}")
        with Client(server.grpc_url) as client:
            for result in ask_all(client, questions):
                results.append(result)
                if not json_:
                    echo(_text_of(result))
    note("Triton stopped.")
    return results


def _text_of(result: Result) -> str:
    verdict = "right" if result.is_right else f"WRONG, expected: {result.question.answer}"
    times = f"first text {result.first_s * 1000:.0f} ms, whole {result.whole_s * 1000:.0f} ms"
    return (
        f"\n{_relative(result.question.image)}\n"
        f"  Q: {result.question.prompt}\n"
        f"  A: {result.text}   [{verdict}]\n"
        f"     {times}"
    )


def _relative(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _ignore(message: str) -> None:
    """Discards the server's messages about loading models: the demo's own lines are enough."""
