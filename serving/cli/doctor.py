"""`iblip doctor`: what this machine, a container and a build have for one another."""

from __future__ import annotations

import json
from pathlib import Path

import click

from iblip.serving.cli.options import as_json


@click.command()
@click.argument("builds", nargs=-1, type=click.Path(path_type=Path), metavar="[BUILD…]")
@click.option(
    "--container",
    metavar="TAG",
    help="An NVIDIA Triton container, such as 26.07-py3: would it load the builds' engines?",
)
@as_json
def command(builds: tuple[Path, ...], container: str | None, json_: bool) -> None:
    """Say what works here, what does not, and what to do.

    Looks at drivers, libraries, servers and room; and of each BUILD whether this machine, or the
    container, can load its engines. Ends with 1 where something is a problem.
    """
    from iblip.serving.doctor.report import examine, text_of

    report = examine(builds, container)
    click.echo(json.dumps(report.to_json(), indent=2) if json_ else text_of(report))
    if report.verdict == "problem":
        raise SystemExit(1)
