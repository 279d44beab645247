"""Latency of a short answer: transformers, in process, through Triton, each alone, in turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.alone import Way, compare
from benchmarks.builds import build, build_of

TASK = "a short answer"


def main(checkpoint: Path, scratch: Path, *, against: Path | None = None) -> dict[str, Any]:
    """A new image and question each call, the same for every way.

    Args:
        checkpoint: of the model.
        scratch: for builds.
        against: another checkout; its ways are among the turns.
    """
    own = build(checkpoint, scratch)
    ways = {
        name: Way(name=name, task=TASK, build=own)
        for name in ("transformers", "in process", "through Triton")
    }
    if against is not None:
        other = build_of(against, checkpoint, scratch)
        for name in ("in process", "through Triton"):
            ways[f"{name}, before"] = Way(name=name, task=TASK, build=other, checkout=against)
    return compare(ways, checkpoint)
