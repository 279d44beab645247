"""`python -m benchmarks [NAME …]`: runs benchmarks and writes `benchmarks/results.json`."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from benchmarks.measure import RESULTS
from iblip.export.checkpoint.checkpoint import DEMO
from iblip.serving.cli.quiet import quiet_libraries

NAMES = ("builds", "heldout", "beams", "originals", "crowd", "one_image", "latency", "load", "soak")
MODELS = ("instructblip-demo-vicuna", "instructblip-demo-flant5")


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NAMES))
@click.option(
    "--model", "models", multiple=True, default=MODELS, help="Demo checkpoint to use. Repeatable."
)
@click.option(
    "--seconds", default=120.0, show_default=True, help="Duration of the arrivals (load)."
)
@click.option("--requests", default=2000, show_default=True, help="Number of requests (soak).")
def main(names: tuple[str, ...], models: tuple[str, ...], seconds: float, requests: int) -> None:
    """Run the benchmarks NAMES, or all of them; saved figures of the others stay."""
    quiet_libraries()
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results["machine"] = {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    options: dict[str, dict[str, Any]] = {
        "load": {"seconds": seconds},
        "soak": {"requests": requests},
    }
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".benchmarks-") as scratch:
        for name in names or NAMES:
            benchmark, chosen = import_module(f"benchmarks.{name}"), options.get(name, {})
            for model in models:
                figures = benchmark.main(DEMO.parent / model, Path(scratch), **chosen)
                results.setdefault(name, {})[model] = figures
                click.echo(f"{name} {model}: {json.dumps(figures, indent=2)}")
                RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
