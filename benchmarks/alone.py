"""Ways to answer the same questions, each alone on the machine, in turns.

A round runs every way in a process of its own, one after another. In one process, or beside each
other, they would slow each other down: the threads of ONNX Runtime and torch spin for work.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.server_process import ROOT, environment_of

ROUNDS = 3

WAY = Path(__file__).with_name("way.py")


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to answer.

    Attributes:
        name: of `benchmarks.way.WAYS`.
        task: of `benchmarks.way.CALLS`.
        build: which build answers.
        checkout: whose code answers.
    """

    name: str
    task: str
    build: Path
    checkout: Path = ROOT

    def run(self, checkpoint: Path) -> dict[str, Any]:
        """What `benchmarks.way.main` returns."""
        arguments = [self.name, self.task, str(checkpoint.resolve()), str(self.build.resolve())]
        done = subprocess.run(
            [sys.executable, "-P", str(WAY), *arguments],
            cwd=self.checkout,
            env=environment_of(self.checkout),
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return figures


def compare(ways: Mapping[str, Way], checkpoint: Path) -> dict[str, dict[str, float]]:
    """By way: `median_ms` and `p95_ms` of all rounds, the `ratio` of its median to the first way's,
    and `processor_ms`, which the processes of a call took."""
    seconds: dict[str, list[float]] = {title: [] for title in ways}
    processor: dict[str, list[float]] = {title: [] for title in ways}
    for _ in range(ROUNDS):
        for title, way in ways.items():
            figures = way.run(checkpoint)
            seconds[title] += figures["seconds"]
            processor[title].append(figures["processor_s"])
    medians = {title: statistics.median(values) for title, values in seconds.items()}
    first = next(iter(medians.values()))
    return {
        title: {
            "median_ms": round(medians[title] * 1e3, 2),
            "p95_ms": round(statistics.quantiles(values, n=20)[-1] * 1e3, 2),
            "ratio": round(medians[title] / first, 3),
            "processor_ms": round(statistics.median(processor[title]) * 1e3, 2),
        }
        for title, values in seconds.items()
    }
