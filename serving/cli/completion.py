"""`iblip completion`: what a shell needs to complete commands, options and their values."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from iblip.serving.cli.commands import Command
from iblip.serving.cli.formatting import echo

RC_FILES = {
    "bash": '~/.bashrc:  eval "$(iblip completion bash)"',
    "zsh": '~/.zshrc:  eval "$(iblip completion zsh)"',
    "fish": "~/.config/fish/config.fish:  iblip completion fish | source",
}


@click.command(
    cls=Command,
    short_help="Complete commands in your shell.",
    epilog="Put this line into your shell's file:\n\n" + "\n\n".join(RC_FILES.values()),
)
@click.argument("shell", type=click.Choice(list(RC_FILES)))
def command(shell: str) -> None:
    """Print the script that makes SHELL complete what `iblip` takes."""
    root = click.get_current_context().find_root().command
    kind = get_completion_class(shell)
    assert kind is not None
    echo(kind(root, {}, "iblip", "_IBLIP_COMPLETE").source())
