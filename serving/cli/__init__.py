"""The command line: `iblip`, and `export` for those who know it by that name.

`main` and `export_main` are the entry points. Each command is a module of this package with a click
command named `command`; the tables `EXPORT` and `IBLIP` name them. A module is imported only when
its command is used, and imports what is heavy only when it runs. Options can also be given as
environment variables: `IBLIP_SERVE_HTTP_PORT`, `IBLIP_BUILD_PRECISION`. Commands parse options and
print results; the work is done by the other rooms, which never print.
"""

from __future__ import annotations

from collections.abc import Mapping

import click

from iblip.serving.cli.commands import Commands

EXPORT: Mapping[str, str] = {
    "build": "iblip.serving.cli.build",
    "verify": "iblip.serving.cli.verify",
    "inspect": "iblip.serving.cli.inspect",
    "synthesize": "iblip.serving.cli.synthesize",
}
"""Commands of `iblip` that `export` has too, and the module of each."""

IBLIP: Mapping[str, str] = {
    "build": EXPORT["build"],
    "verify": EXPORT["verify"],
    "prove": "iblip.serving.cli.prove",
    "inspect": EXPORT["inspect"],
    "synthesize": EXPORT["synthesize"],
    "serve": "iblip.serving.cli.serve",
    "gateway": "iblip.serving.cli.gateway",
    "ask": "iblip.serving.cli.ask",
    "run": "iblip.serving.cli.run",
    "demo": "iblip.serving.cli.demo",
    "bench": "iblip.serving.cli.bench",
    "tune": "iblip.serving.cli.tune",
    "models": "iblip.serving.cli.models",
    "doctor": "iblip.serving.cli.doctor",
    "lint": "iblip.serving.cli.lint",
    "engines": "iblip.serving.cli.engines",
    "traces": "iblip.serving.cli.traces",
    "vllm": "iblip.serving.cli.vllm",
    "completion": "iblip.serving.cli.completion",
}
"""Commands of `iblip`, and the module of each."""


@click.group(cls=Commands, table=EXPORT, short_help="The same commands under another name.")
def export() -> None:
    """The same commands, for those who know them as `export build`."""


@click.group(cls=Commands, table=IBLIP)
@click.version_option(None, "-V", "--version", package_name="iblip")
def iblip() -> None:
    """Export InstructBLIP, BLIP-2 and MiniGPT-4 checkpoints, and serve them with NVIDIA Triton."""


iblip.add_command(export, "export")


def main() -> None:
    """The command `iblip`."""
    iblip(prog_name="iblip", auto_envvar_prefix="IBLIP")


def export_main() -> None:
    """The command `export`; shells have their own `export`, so `python -m export` works too."""
    export(prog_name="export", auto_envvar_prefix="IBLIP_EXPORT")
