"""Proves many builds in little time: the stages of `iblip prove`, the most valuable first.

    python -m benchmarks.gpu.prove_builds BUILD… --out FOLDER --seconds 180

1. The first build, every stage: a record that turns its rows.
2. All others, several at a time, in the stages that compare. Memory and speed are left out: builds
   that run side by side would measure each other.
3. The others again, one after another and whole, as long as there is time.

With `--side-by-side` the second pass is the only one, with `--stage` a single pass in those stages.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from benchmarks.gpu.facts import Facts
from iblip.export.errors import IblipError
from iblip.serving.proving.running import ProofOptions, prove
from iblip.serving.proving.text import line_of

COMPARING = ("placement", "graphs", "text", "ranking", "images")
"""Stages that can run beside those of another build."""

WORKERS = 6
"""Builds at a time: each is a process on a few cores, and a context on the GPU."""


@dataclass(frozen=True, kw_only=True)
class Proofs:
    """Proofs of several builds within a time.

    Attributes:
        facts: where every line goes.
        records: folder of the records' own files, outside of what is brought back.
        end: time on `time.monotonic` after which no further proof begins.
        stage_s: seconds after which a stage is stopped.
    """

    facts: Facts
    records: Path
    end: float
    stage_s: float

    def run(self, build: Path, stages: Sequence[str] = (), name: str | None = None) -> None:
        """Proves a build in some stages, or in all. Says so where it did not begin: time was over.

        An error is printed and raises nothing: the other builds are still to be proven.

        Args:
            build: the build's directory.
            stages: names of stages; none is all.
            name: of the record; `None` is the build's.
        """
        name = name or build.name
        if time.monotonic() > self.end:
            print(f"{name}: not begun, the time is over", flush=True)
            return

        def tell(line: Mapping[str, Any]) -> None:
            self.facts.write(name, line)
            print(f"{name}: {line_of(line)}", flush=True)

        path = self.records / f"{name}.jsonl"
        options = ProofOptions(stages=tuple(stages), record=path, stage_s=self.stage_s)
        try:
            prove(build, options, tell)
        except IblipError as error:
            print(f"{name}: {error}", flush=True)


def prove_builds(builds: Sequence[Path], proofs: Proofs, workers: int = WORKERS) -> None:
    """Proves builds in the three passes that the module's docstring tells."""
    first, *others = builds
    proofs.run(first)
    compare_builds(others, proofs, workers)
    for build in others:
        proofs.run(build)


def compare_builds(builds: Sequence[Path], proofs: Proofs, workers: int = WORKERS) -> None:
    """Runs the stages that compare, for several builds at a time."""
    with ThreadPoolExecutor(workers) as pool:
        for build in builds:
            pool.submit(proofs.run, build, COMPARING, f"{build.name}-compared")


@click.command()
@click.argument("builds", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--seconds", default=180.0, help="After which no further proof begins.")
@click.option(
    "--stage-seconds",
    default=60.0,
    help="After which a stage is stopped: a GPU that hangs is not to take all the time.",
)
@click.option("--workers", default=WORKERS, help="Builds that are compared at a time.")
@click.option("--side-by-side", is_flag=True, help="Compare all builds, several at a time.")
@click.option("--stage", "stages", multiple=True, help="Run only this stage. Repeatable.")
def main(
    builds: tuple[Path, ...],
    out: Path,
    seconds: float,
    stage_seconds: float,
    workers: int,
    side_by_side: bool,
    stages: tuple[str, ...],
) -> None:
    """Prove BUILDS, in this order, and write each fact to a file in the folder OUT."""
    end = time.monotonic() + seconds
    with Facts(out) as facts, TemporaryDirectory() as records:
        proofs = Proofs(facts=facts, records=Path(records), end=end, stage_s=stage_seconds)
        if side_by_side:
            compare_builds(builds, proofs, workers)
        elif stages:
            for build in builds:
                proofs.run(build, stages, f"{build.name}-{'-'.join(stages)}")
        else:
            prove_builds(builds, proofs, workers)


if __name__ == "__main__":
    main()
