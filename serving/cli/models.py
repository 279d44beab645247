"""`iblip models`: the known models, their names, and what has been verified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from iblip.serving.cli.commands import Command
from iblip.serving.cli.formatting import echo, echo_json
from iblip.serving.cli.options import as_json

if TYPE_CHECKING:
    from iblip.export.models.model import Model

IMAGES: Mapping[str, str] = {
    "one": "one image before the prompt",
    "frames": "one image before the prompt, or the frames of a video",
    "places": "images anywhere in the prompt",
}
"""`export.families.family.Images` in words."""


TITLES: Mapping[str, str] = {
    "instructblip": "InstructBLIP",
    "blip2": "BLIP-2",
    "minigpt4": "MiniGPT-4",
    "llama": "LLaMA",
    "opt": "OPT",
    "t5": "T5",
}
"""Families and language models, as their papers spell them."""

MORE = """\
--model takes a hub id, a directory in Hugging Face format, or a name from the last column with the
original's files (docs/checkpoints.md). docs/evidence.md says what exactly has been run."""


@click.command(cls=Command, short_help="List the known models.")
@as_json
def command(json_: bool) -> None:
    """List the known models: names, parameters, what is supported, and what verifies it."""
    from iblip.export.models.table import MODELS

    rows = list(MODELS.values())
    if json_:
        echo_json({"models": [model.to_json() for model in rows]})
        return
    groups: dict[str, list[Model]] = {}
    for model in rows:
        groups.setdefault(model.demo, []).append(model)
    echo("\n\n".join(_block(group) for group in groups.values()))
    echo(f"\n{MORE}")


def _block(models: Sequence[Model]) -> str:
    """The models of one family and kind of language model, which share a demo checkpoint."""
    first = models[0]
    title = f"{TITLES[first.family.name]} on {TITLES[first.text['model_type']]}"
    title += "" if first.qformer else "-2, without a Q-Former"
    hub = (
        "Hugging Face: Salesforce/<name>"
        if first.hub
        else "Hugging Face: in a format of this project"
    )
    engines = ", ".join(first.llm_engines)
    return "\n".join(
        [
            f"{title}: {IMAGES[first.family.images]}",
            f"  {'name':24} {'parameters':>10} {'pixels':>7}   original, for --model",
            *map(_line, models),
            f"  {hub}; language model on {engines}",
            f"  verified with: the demo checkpoint {first.demo}, of the same modules",
            f"  {_at_size(models)}",
        ]
    )


def _line(model: Model) -> str:
    billions = sum(model.parameters.values()) / 1e9
    return f"  {model.name:24} {billions:8.1f} B {model.image_size:7}   {model.original}"


def _at_size(models: Sequence[Model]) -> str:
    built = [model.name for model in models if model.built_at_size]
    return f"built at true size, with random weights: {', '.join(built) or 'none yet'}"
