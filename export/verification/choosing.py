"""Chooses whether transformers' model is loaded whole, or streamed a layer at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from iblip.export.adapters.adapted import Adapted
from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.dequantisation.methods import methods_of
from iblip.export.errors import OptionError
from iblip.export.messages import size_text

ReferenceKind = Literal["auto", "whole", "streamed"]

SHARE = 0.7
"""Share of the free memory that the weights may take. Activations, and the graphs that the model is
compared with, take the rest."""

CGROUP = Path("/sys/fs/cgroup")
"""Directory with the memory limits of a container (cgroup v2: `memory.max`, `memory.current`)."""


@dataclass(frozen=True, kw_only=True)
class ReferenceChoice:
    """How the reference runs.

    Attributes:
        streamed: whether it runs a layer at a time.
        reason: of the choice, in words.
    """

    streamed: bool
    reason: str


def choose_reference(
    checkpoint: Checkpoint, asked: str = "auto", available: int | None = None
) -> ReferenceChoice:
    """Chooses how the reference runs; `auto` streams if float32 weights do not fit into memory.

    Args:
        checkpoint: that is run.
        asked: one of `ReferenceKind`.
        available: bytes of free memory; `None` asks the system.

    Raises:
        OptionError: `asked` is another word.
    """
    if asked not in get_args(ReferenceKind):
        known = ", ".join(get_args(ReferenceKind))
        raise OptionError(f"--reference is {asked!r}; expected one of {known}")
    own = checkpoint.base if isinstance(checkpoint, Adapted) else checkpoint
    quantised = methods_of(own.tensors.values())
    beside = f"; {quantised}, and dequantised by this project's own code" if quantised else ""
    if asked != "auto":
        return ReferenceChoice(streamed=asked == "streamed", reason=f"--reference {asked}{beside}")
    needed = 4 * sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())
    free = available_memory() if available is None else available
    sizes = f"{size_text(needed)} in float32, {size_text(free)} of memory free"
    return ReferenceChoice(streamed=needed > SHARE * free, reason=f"{sizes}{beside}")


def available_memory() -> int:
    """Returns the bytes of memory that are free on the machine, or in its container."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        most, used = ((CGROUP / f"memory.{name}").read_text() for name in ("max", "current"))
        return min(free, int(most) - int(used))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free
