"""Finds the small checkpoints that come with this project: in a checkout, or a package of data."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from iblip.export.errors import CheckpointError

NAME = "instructblip-demo-vicuna"
"""The checkpoint that is built if no `--model` is given."""

PACKAGE = "iblip_demo"
"""Package that holds checkpoints, for an installation without a checkout."""

FOLDER = Path(__file__).resolve().parents[2] / "checkpoints"
"""Where a checkout has them."""


def demo_checkpoint(name: str = NAME) -> Path:
    """Returns the directory of a demo checkpoint: the checkout's, or that of `iblip_demo`.

    Raises:
        CheckpointError: neither has it.
    """
    spec = find_spec(PACKAGE)
    places = [FOLDER, *map(Path, (spec and spec.submodule_search_locations) or ())]
    for place in places:
        if (place / name / "config.json").is_file():
            return place / name
    raise CheckpointError(
        f"the checkpoint {name} is not installed: a wheel of this project has none. Install the"
        " wheel iblip-demo, which `make wheel` builds beside it, run from a checkout, or give"
        " --model a checkpoint of your own."
    )
