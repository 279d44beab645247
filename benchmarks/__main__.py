"""`python -m benchmarks [NAME …]`: runs benchmarks and writes `benchmarks/results.json`.

`growth` and `peers` have arguments of their own: `python -m benchmarks growth --help`.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from benchmarks.against import compare
from benchmarks.measure import RESULTS
from iblip.export.checkpoint.checkpoint import DEMO
from iblip.serving.cli.quiet import quiet_libraries

NAMES = (
    "builds",
    "heldout",
    "beams",
    "originals",
    "crowd",
    "one_image",
    "latency",
    "load",
    "soak",
    "vanishing",
    "gateway",
)
LONG = (
    "adapters",
    "aiperf",
    "catalogue",
    "chaos",
    "dashboard",
    "decoding",
    "json_schema",
    "overload",
    "overnight",
)
"""Run only if they are named."""

WITH_ARGUMENTS = ("growth", "peers")
"""Those that are named first, before arguments of their own."""

COMPARED = ("load",)
"""Those that `--against` runs in both checkouts, each by its own code."""

MODELS = ("instructblip-demo-vicuna", "instructblip-demo-flant5")


@click.command()
@click.argument("names", nargs=-1, type=click.Choice((*NAMES, *LONG)))
@click.option(
    "--model", "models", multiple=True, default=MODELS, help="Demo checkpoint to use. Repeatable."
)
@click.option(
    "--seconds", default=120.0, show_default=True, help="Duration of the arrivals (load)."
)
@click.option("--requests", default=2000, show_default=True, help="Number of requests (soak).")
@click.option("--minutes", default=30.0, show_default=True, help="Duration of the events (chaos).")
@click.option(
    "--against",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Another checkout, measured in turns with this one (latency, load, overload).",
)
def main(
    names: tuple[str, ...],
    models: tuple[str, ...],
    seconds: float,
    requests: int,
    minutes: float,
    against: Path | None,
) -> None:
    """Run the benchmarks NAMES, or all but the long ones; other saved figures stay."""
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
        "chaos": {"minutes": minutes},
        "latency": {"against": against},
        "overload": {"against": against},
    }
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".benchmarks-") as scratch:
        for name in names or NAMES:
            benchmark, chosen = import_module(f"benchmarks.{name}"), options.get(name, {})
            for model in models:
                checkpoint = DEMO.parent / model
                if against is not None and name in COMPARED:
                    figures = compare(name, checkpoint, Path(scratch), against, chosen)
                else:
                    figures = benchmark.main(checkpoint, Path(scratch), **chosen)
                both = against is not None and name in (*COMPARED, "latency")
                title = f"{name}_before_and_now" if both else name
                results.setdefault(title, {})[model] = figures
                click.echo(f"{name} {model}: {json.dumps(figures, indent=2)}")
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def start(arguments: Sequence[str]) -> None:
    """Runs a benchmark that has arguments of its own, or those that are named."""
    if arguments[:1] and arguments[0] in WITH_ARGUMENTS:
        import_module(f"benchmarks.{arguments[0]}").main(arguments[1:])
    else:
        main(arguments)


if __name__ == "__main__":
    start(sys.argv[1:])
