"""Options that several commands share. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from engines.language_model.types import GenerationOptions

GENERATION: tuple[tuple[str, Any, str], ...] = (
    ("max_new_tokens", int, "Most tokens of the answer. Default: the checkpoint's own."),
    ("min_new_tokens", int, "The answer cannot end before this many tokens. Default: 0."),
    ("temperature", float, "0 always takes the likeliest token; above, one is drawn. Default: 0."),
    ("top_k", int, "Draw among the k likeliest; 0 is all. Default: 0."),
    ("top_p", float, "Draw among the likeliest that reach this probability. Default: 1."),
    ("repetition_penalty", float, "Above 1, repeats are less likely. Default: 1."),
    ("seed", int, "Of the draw. Default: a fresh one."),
)
"""Name, type and help of each option of an answer."""


def generation_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of an answer; `options_from_flags` reads them."""
    stop = click.option(
        "--stop", multiple=True, help="End the answer before this text. Repeatable."
    )
    function = stop(function)
    for name, kind, text in reversed(GENERATION):
        flag = "--" + name.replace("_", "-")
        function = click.option(flag, name, type=kind, default=None, help=text)(function)
    return function


def options_from_flags(flags: dict[str, Any]) -> GenerationOptions:
    """The options of an answer among a command's flags.

    Raises:
        OptionError: one is out of range.
    """
    from engines.language_model.types import GenerationOptions

    names = [name for name, _, _ in GENERATION]
    given = {name: flags[name] for name in names if flags[name] is not None}
    return GenerationOptions(**given, stop=tuple(flags["stop"]))


def as_json(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--json`, as the argument `json_`."""
    text = "Print the result as JSON."
    return click.option("--json", "json_", is_flag=True, help=text)(function)


def triton_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--triton`."""
    return click.option(
        "--triton",
        type=click.Path(path_type=Path),
        metavar="PATH",
        help="A tritonserver to use. Default: the container's, or nvidia-pytriton's.",
    )(function)
