"""`iblip verify`: compares builds with transformers, stage by stage."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from iblip.serving.cli.commands import Command
from iblip.serving.cli.formatting import echo_json, echo_verdicts, width_of_terminal
from iblip.serving.cli.kinds import DIRECTORY, PATH, Word
from iblip.serving.cli.options import as_json, source_options


def _stages() -> Iterable[str]:
    from iblip.serving.parity.stages import STAGES

    return STAGES


@click.command(cls=Command, short_help="Compare builds with transformers.")
@click.argument("directories", nargs=-1, required=True, metavar="DIRECTORY…", type=DIRECTORY)
@source_options(of_build=True)
@click.option(
    "--examples",
    type=DIRECTORY,
    help="Directory with examples.jsonl. Default: the checkpoint's own.",
)
@click.option("--limit", type=int, help="Use at most this many examples.")
@click.option(
    "--stage",
    "stages",
    type=Word(_stages, "STAGE"),
    multiple=True,
    help="Run only this stage: preprocessing, vision_encoder, qformer, language_model, "
    "first_token, graphs, text, beams, accuracy, batching or padding. Repeatable.",
)
@click.option(
    "--reference",
    type=click.Choice(["auto", "whole", "streamed"]),
    default="auto",
    help="How transformers runs: whole in memory, or streamed from the checkpoint one layer at a "
    "time. Default: streamed if it does not fit into memory.",
)
@click.option(
    "--html",
    type=PATH,
    help="File for the report as a page; its JSON goes beside it. Default: "
    "verification/report.html in the first DIRECTORY.",
)
@as_json
@click.pass_context
def command(
    ctx: click.Context,
    directories: tuple[Path, ...],
    model: str | None,
    revision: str | None,
    parts: tuple[str, ...],
    adapters: tuple[str, ...],
    examples: Path | None,
    limit: int | None,
    stages: tuple[str, ...],
    reference: str,
    html: Path | None,
    json_: bool,
) -> None:
    """Compare the builds in each DIRECTORY, all of one checkpoint, with transformers.

    Stage by stage: pixels, every block, the first token, every graph, answers, batches, padding.
    The first block whose error leaves its band is named. The exit status is 1 if a threshold is
    exceeded.
    """
    from iblip.export.checkpoint.source import parts_from_words
    from iblip.export.errors import VerificationError
    from iblip.export.opening import source_of_build
    from iblip.serving.cli.progress import command_progress
    from iblip.serving.cli.quiet import quiet_libraries
    from iblip.serving.parity.running import ParityOptions, parity_report
    from iblip.serving.parity.text import text_from_report
    from iblip.serving.parity.writing import check_page, page_of, write_report

    quiet_libraries()
    source = source_of_build(directories[0], model, revision, parts_from_words(parts), adapters)
    options = ParityOptions(
        source=source, examples=examples, limit=limit, stages=stages, reference=reference
    )
    page, progress = html or page_of(directories[0]), command_progress()
    check_page(page)
    report = parity_report(directories, progress, options)
    progress.note("report: {}, {}".format(*write_report(report, page)))
    if json_:
        echo_json(report.to_json())
    else:
        echo_verdicts(text_from_report(report, width_of_terminal()))
    if not all(report.builds):
        ctx.exit(VerificationError.exit_status)
