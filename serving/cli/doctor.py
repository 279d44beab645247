"""`iblip doctor`: whether this machine, or a container on it, can build and serve."""

from __future__ import annotations

from pathlib import Path

import click

from iblip.serving.cli.commands import Command
from iblip.serving.cli.formatting import echo, echo_json
from iblip.serving.cli.kinds import DIRECTORY
from iblip.serving.cli.options import as_json


@click.command(cls=Command, short_help="Check this machine, and builds on it.")
@click.argument("builds", nargs=-1, type=DIRECTORY, metavar="[BUILD…]")
@click.option(
    "--container",
    metavar="TAG",
    help="Check this NVIDIA Triton container, such as 26.07-py3, instead of this machine.",
)
@as_json
def command(builds: tuple[Path, ...], container: str | None, json_: bool) -> None:
    """Report what works here, what does not, and what to do about it.

    Checks drivers, libraries, servers, memory and disk, and whether this machine or the container
    can load the engines of each BUILD. The exit status is 1 if there is a problem.
    """
    from iblip.serving.doctor.report import examine, text_from_report

    report = examine(builds, container)
    if json_:
        echo_json(report.to_json())
    else:
        echo(text_from_report(report))
    if report.verdict == "problem":
        click.get_current_context().exit(1)
