"""A benchmark of this checkout and of another, each by its own code, in turns."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.server_process import ROOT, environment_of

ROUNDS = 3

_RUN = """
import json, sys
from importlib import import_module
from pathlib import Path
name, checkpoint, scratch, options = sys.argv[1:]
figures = import_module(f"benchmarks.{name}").main(
    Path(checkpoint), Path(scratch), **json.loads(options)
)
print(json.dumps(figures))
"""


def compare(
    name: str, checkpoint: Path, scratch: Path, against: Path, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The median of every figure over the rounds, of both checkouts."""
    rounds: dict[str, list[Any]] = {"before": [], "this checkout": []}
    for _ in range(ROUNDS):
        for title, checkout in zip(rounds, (against.resolve(), ROOT), strict=True):
            own = scratch / title.replace(" ", "-")
            own.mkdir(exist_ok=True)
            arguments = [name, str(checkpoint.resolve()), str(own.resolve()), json.dumps(options)]
            done = subprocess.run(
                [sys.executable, "-c", _RUN, *arguments],
                cwd=checkout,
                env=environment_of(checkout),
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            )
            rounds[title].append(json.loads(done.stdout.splitlines()[-1]))
    return {title: _median(figures) for title, figures in rounds.items()}


def _median(figures: Sequence[Any]) -> Any:
    """Of each number in nested objects of the same keys; of anything else, the first."""
    first = figures[0]
    if isinstance(first, dict):
        return {key: _median([one[key] for one in figures if key in one]) for key in first}
    if isinstance(first, int | float):
        return round(statistics.median(figures), 3)
    return first
