"""`python -m benchmarks.engine_cache`: the same build three times: first, unchanged, and forced.

    python -m benchmarks.engine_cache                   the LLaMA demo, and a ViT-g of ten layers
    python -m benchmarks.engine_cache --layers 39       … of its true depth: 6 GB of memory

TensorRT-RTX builds plans for an Ada GPU, without having one. The second build finds that nothing
has changed; the third is forced, and takes traced graphs and plans from the caches. Nothing is
verified.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.measure import Process, load_figures, run, save_figures
from benchmarks.vision_encoder import vision_checkpoint
from iblip.export.checkpoint.checkpoint import DEMO
from iblip.serving.cli.quiet import quiet_libraries

STAGE = re.compile(r"^  (trace|write|build|take|assemble) .*: (\d+\.\d) s$", re.MULTILINE)
"""A stage of a build that is over, as `serving.cli.progress` tells it."""

PARTS = {
    "trace": "tracing",
    "write": "weights",
    "build": "plans",
    "take": "plans",
    "assemble": "repository",
}
"""First word of a stage to the part of a build that it is of."""


@click.command()
@click.option("--layers", default=10, show_default=True, help="Of the ViT-g.")
@click.option("--demo/--no-demo", default=True, help="Also the LLaMA demo.")
@click.option("--scratch", type=click.Path(path_type=Path), help="Directory for temporary files.")
def main(layers: int, demo: bool, scratch: Path | None) -> None:
    """Measure, and save the figures in `benchmarks/results.json`."""
    quiet_libraries()
    with tempfile.TemporaryDirectory(dir=scratch or Path.cwd(), prefix=".benchmarks-") as name:
        figures = {DEMO.name: measure(DEMO, Path(name))} if demo else {}
        checkpoint = vision_checkpoint(Path(name), layers)
        figures[f"ViT-g of {layers} layers"] = measure(checkpoint, Path(name))
    save_figures("engine_cache", {**load_figures("engine_cache"), **figures})
    click.echo(json.dumps(figures, indent=2))


def measure(checkpoint: Path, scratch: Path) -> dict[str, Any]:
    """Figures of three builds of a checkpoint, and bytes of the plans."""
    output, cache = scratch / "build", scratch / "cache"
    command = [
        *("iblip", "export", "build", "--model", str(checkpoint), "--output", str(output)),
        *("--engine", "tensorrt-rtx", "--target", "sm89", "--precision", "fp16", "--no-verify"),
    ]
    builds = {
        "first": run(command, cache),
        "second": run(command, cache),
        "forced": run([*command, "--force"], cache),
    }
    size = sum(plan.stat().st_size for plan in output.rglob("*.plan"))
    shutil.rmtree(output)
    shutil.rmtree(cache)
    return {"plan_bytes": size, **{name: _figures(process) for name, process in builds.items()}}


def _figures(process: Process) -> dict[str, Any]:
    """Seconds in all and by part; what is in no part is starting Python and its libraries."""
    parts = dict.fromkeys(PARTS.values(), 0.0)
    for word, seconds in STAGE.findall(process.output):
        parts[PARTS[word]] += float(seconds)
    parts["start"] = process.seconds - sum(parts.values())
    rounded = {part: round(seconds, 1) for part, seconds in parts.items()}
    return {**process.to_json(), "parts": rounded}


if __name__ == "__main__":
    main()
