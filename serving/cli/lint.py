"""`iblip lint`: what is wrong with a Triton model repository, before a server loads it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from iblip.serving.cli.formatting import echo
from iblip.serving.cli.options import as_json


def _print_rules(ctx: click.Context, parameter: click.Parameter, asked: bool) -> None:
    if asked:
        from iblip.serving.lint.page import rules_page

        echo(rules_page(), nl=False)
        ctx.exit()


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--container",
    metavar="TAG",
    help="The NVIDIA Triton container that will serve it, such as 26.07-py3. Default: the server "
    "from PyPI.",
)
@click.option("--strict", is_flag=True, help="Fail on warnings as well.")
@click.option(
    "--rules",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_rules,
    help="Print every rule with its reason and remedy, and exit.",
)
@as_json
@click.pass_context
def command(
    ctx: click.Context, directory: Path, container: str | None, strict: bool, json_: bool
) -> None:
    """Check the Triton model repository in DIRECTORY, or that of a build, without a server.

    Every finding names file and line, why it matters and what to do. The exit status is 1 if there
    are errors, or with --strict warnings.
    """
    from iblip.serving.lint.checking import lint
    from iblip.serving.lint.reading import PIP_SERVER, server_of_container

    server = PIP_SERVER if container is None else server_of_container(container)
    report = lint(directory, server)
    echo(json.dumps(report.to_json(), indent=2) if json_ else str(report))
    if not report.passed(strict=strict):
        ctx.exit(1)
