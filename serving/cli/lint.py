"""`iblip lint`: what is wrong with a Triton model repository, before a server loads it."""

from __future__ import annotations

from pathlib import Path

import click

from iblip.serving.cli.commands import Command
from iblip.serving.cli.formatting import echo, echo_json, echo_verdicts
from iblip.serving.cli.kinds import DIRECTORY
from iblip.serving.cli.options import as_json


@click.command(cls=Command, short_help="Check a Triton model repository.")
@click.argument("directory", required=False, type=DIRECTORY)
@click.option(
    "--container",
    metavar="TAG",
    help="The NVIDIA Triton container that will serve it, such as 26.07-py3. Default: the server "
    "from PyPI.",
)
@click.option("--strict", is_flag=True, help="Fail on warnings as well.")
@click.option(
    "--rules", is_flag=True, help="Print every rule with its reason and remedy, and exit."
)
@as_json
@click.pass_context
def command(
    ctx: click.Context,
    directory: Path | None,
    container: str | None,
    strict: bool,
    rules: bool,
    json_: bool,
) -> None:
    """Check the Triton model repository in DIRECTORY, or that of a build, without a server.

    Every finding names file and line, why it matters and what to do. The exit status is 1 if there
    are errors, or with --strict warnings.
    """
    if rules:
        _print_rules(json_)
        return
    if directory is None:
        raise click.UsageError("missing argument 'DIRECTORY'", ctx)
    from iblip.serving.lint.checking import lint
    from iblip.serving.lint.reading import PIP_SERVER, server_of_container

    server = PIP_SERVER if container is None else server_of_container(container)
    report = lint(directory, server)
    if json_:
        echo_json(report.to_json())
    else:
        echo_verdicts(str(report))
    if not report.passed(strict=strict):
        ctx.exit(1)


def _print_rules(json_: bool) -> None:
    from iblip.serving.lint.page import rules_page
    from iblip.serving.lint.rules import RULES

    if json_:
        echo_json({"rules": [rule.to_json() for rule in RULES.values()]})
    else:
        echo(rules_page(), nl=False)
