"""`iblip prove`: proves a build on the machine where it is to run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from iblip.serving.cli.commands import Command
from iblip.serving.cli.formatting import echo, echo_json, echo_verdicts
from iblip.serving.cli.kinds import DIRECTORY, PATH, Word
from iblip.serving.cli.options import as_json


def _stages() -> Iterable[str]:
    from iblip.serving.proving.stages import STAGES

    return STAGES


@click.command(cls=Command, short_help="Prove a build on the machine where it runs.")
@click.argument("build", type=DIRECTORY)
@click.option("--limit", type=int, help="Ask at most this many questions of each kind.")
@click.option(
    "--stage",
    "stages",
    type=Word(_stages, "STAGE"),
    multiple=True,
    help="Run only this stage: smoke, placement, graphs, text, ranking, images, invariance, "
    "kernels, memory or speed. Repeatable.",
)
@click.option(
    "--record",
    type=PATH,
    help="File for the record. Default: proof/record.jsonl in BUILD.",
)
@click.option(
    "--torch/--no-torch",
    default=True,
    help="Measure torch beside the build where it is installed. Default: --torch.",
)
@click.option("--html", is_flag=True, help="Also write the record as a page, beside the record.")
@as_json
def command(
    build: Path,
    limit: int | None,
    stages: tuple[str, ...],
    record: Path | None,
    torch: bool,
    html: bool,
    json_: bool,
) -> None:
    """Compare the BUILD on this machine's engines with what it answered when it was verified.

    Stage by stage: the machine, where each node runs, every graph, answers, rankings, several
    images, alone and in a crowd, kernels, memory, speed. Neither torch, transformers nor the
    checkpoint is needed. Each fact is printed and recorded at once. The exit status is 1 if
    something is not as it should be.
    """
    from iblip.export.errors import VerificationError
    from iblip.serving.proving.record import RECORD
    from iblip.serving.proving.running import ProofOptions, prove
    from iblip.serving.proving.text import line_of

    options = ProofOptions(stages=stages, limit=limit, record=record, torch=torch)

    def tell(line: Mapping[str, Any]) -> None:
        echo_verdicts(line_of(line), err=json_)

    result = prove(build, options, tell)
    path = record or build / RECORD
    if html:
        from iblip.serving.proving.page import write_page

        echo(f"page: {write_page(result, path)}", err=True)
    if json_:
        echo_json(result.to_json())
    echo(f"record: {path}", err=True)
    if result.verdict == "failed":
        message = f"{build} is not proven here: {'; '.join(result.failures[:5])}"
        echo_verdicts(f"error: {message}", err=True)
        click.get_current_context().exit(VerificationError.exit_status)
