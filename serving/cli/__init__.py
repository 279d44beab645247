"""The command line: `iblip`, and `export` for those who know it by that name.

`main` and `export_main` are the entry points. Each command is a module of this package with a click
command named `command`; the tables `EXPORT` and `IBLIP` name them. A module is imported only when
its command is used, and imports what is heavy only when it runs. Options can also be given as
environment variables: `IBLIP_SERVE_HTTP_PORT`, `IBLIP_EXPORT_BUILD_PRECISION`. Commands parse
options and print results; the work is done by the other rooms, which never print.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from iblip.export.errors import IblipError
from iblip.serving.cli.formatting import echo

EXPORT: Mapping[str, str] = {
    "build": "iblip.serving.cli.build",
    "verify": "iblip.serving.cli.verify",
    "inspect": "iblip.serving.cli.inspect",
    "synthesize": "iblip.serving.cli.synthesize",
}
"""Commands of `export`, and the module of each."""

IBLIP: Mapping[str, str] = {
    "serve": "iblip.serving.cli.serve",
    "ask": "iblip.serving.cli.ask",
    "prove": "iblip.serving.cli.prove",
    "demo": "iblip.serving.cli.demo",
    "lint": "iblip.serving.cli.lint",
    "models": "iblip.serving.cli.models",
    "engines": "iblip.serving.cli.engines",
    "doctor": "iblip.serving.cli.doctor",
    "vllm": "iblip.serving.cli.vllm",
}
"""Commands of `iblip` beside `export`, and the module of each."""


class Commands(click.Group):
    """A group whose commands are looked up in a table, and which reports this project's errors.

    An `IblipError` ends the process with its own exit status and one line on stderr; any other
    exception is a bug and keeps its traceback.
    """

    def __init__(self, *args: Any, table: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._table = dict(table or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of the table."""
        return [*self.commands, *self._table]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now; `None` where there is none."""
        if cmd_name not in self._table:
            return super().get_command(ctx, cmd_name)
        command: click.Command = import_module(self._table[cmd_name]).command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except IblipError as error:
            echo(f"error: {error}", err=True)
            ctx.exit(error.exit_status)


def _configure_logging(ctx: click.Context, parameter: click.Parameter, verbose: int) -> None:
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", force=True)


_verbose = click.option(
    "-v",
    "--verbose",
    count=True,
    expose_value=False,
    callback=_configure_logging,
    help="Log more; twice for everything.",
)


@click.group(cls=Commands, table=EXPORT)
@_verbose
def export() -> None:
    """Turn a checkpoint into verified ONNX graphs, engines and a Triton repository."""


@click.group(cls=Commands, table=IBLIP)
@_verbose
@click.version_option(package_name="iblip")
def iblip() -> None:
    """Export InstructBLIP checkpoints and serve them with NVIDIA Triton."""


iblip.add_command(export, "export")


def main() -> None:
    """The command `iblip`."""
    iblip(prog_name="iblip", auto_envvar_prefix="IBLIP")


def export_main() -> None:
    """The command `export`; shells have their own `export`, so `python -m export` works too."""
    export(prog_name="export", auto_envvar_prefix="IBLIP_EXPORT")
