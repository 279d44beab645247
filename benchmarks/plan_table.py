"""Which graph of which family becomes a TensorRT plan in which precision: time, size, or why not.

    python -m benchmarks.plan_table                                   every demo, every precision
    python -m benchmarks.plan_table --demo blip2-demo-opt --policy fp16
    python -m benchmarks.plan_table --at-size                         ViT-g and its Q-Former, fp16
    python -m benchmarks.plan_table --table                           the saved figures, as Markdown

Plans are built by TensorRT-RTX for sm89, without a GPU: TensorRT proper also times kernels on one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from benchmarks.measure import load_figures, run, save_figures
from checkpoints import DEMOS
from iblip.serving.cli.quiet import quiet_libraries

POLICIES: Mapping[str, tuple[str, ...]] = {
    "fp32": ("--precision", "fp32"),
    "fp16": ("--precision", "fp16"),
    "bf16": ("--precision", "bf16"),
    "lavis": ("--precision", "lavis"),
    "int8 static": ("--precision", "vision_encoder=int8,qformer=int8", "--int8", "static"),
    "int8-fp16": ("--precision", "int8-fp16"),
    "fp8": ("--precision", "fp8"),
    "int8 weights": ("--precision", "language_model=int8"),
    "int4": ("--precision", "int4"),
}
"""Name of a row to what `iblip build` is told."""

TARGET = "sm89"
SIZED = "instructblip-vicuna-7b"
"""The model whose vision encoder and Q-Former are measured at their true size; of its language
model one layer is made."""


@click.command()
@click.option("--demo", "demos", multiple=True, default=DEMOS, help="Of the demo checkpoints.")
@click.option("--policy", "policies", multiple=True, type=click.Choice(list(POLICIES)))
@click.option("--at-size", is_flag=True, help="Nothing but vision encoder and Q-Former at size.")
@click.option("--table", "shown", is_flag=True, help="Measure nothing: print the saved figures.")
@click.option("--scratch", type=click.Path(path_type=Path), help="Directory for temporary files.")
@click.option(
    "--builds", type=click.Path(path_type=Path), help="Builds that exist, as <demo>-<policy>."
)
def main(
    demos: tuple[str, ...],
    policies: tuple[str, ...],
    at_size: bool,
    shown: bool,
    scratch: Path | None,
    builds: Path | None,
) -> None:
    """Measure plans, and add the figures to the saved ones."""
    if shown:
        click.echo("\n".join(_table(load_figures("plan_table"))))
        return
    quiet_libraries()
    with TemporaryDirectory(dir=scratch or Path.cwd(), prefix=".benchmarks-") as directory:
        if at_size:
            _add("at size", _at_size(Path(directory)))
            return
        for demo in demos:
            for policy in policies or POLICIES:
                rows = _of_demo(demo, policy, Path(directory), builds)
                for graph, row in rows.items():
                    click.echo(f"{demo} {policy} {graph}: {json.dumps(row)}")
                _add(demo, {policy: rows})


SHOWN = ("fp32", "fp16", "bf16", "lavis", "int8 static")
"""The columns of the table: what was measured of every demo."""


def _table(table: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Seconds and megabytes of every graph of every demo, in Markdown."""
    yield f"| | {' | '.join(SHOWN)} |"
    yield "|---|" + "--:|" * len(SHOWN)
    for demo in DEMOS:
        graphs = table[demo]["fp16"]
        for graph in graphs:
            cells = (_cell(table[demo].get(policy, {}).get(graph, {})) for policy in SHOWN)
            yield f"| {demo} `{graph}` | {' | '.join(cells)} |"


def _cell(row: Mapping[str, Any]) -> str:
    if "seconds" not in row:
        return "fails" if "reason" in row else ""
    return f"{row['seconds']:.1f} s, {row['bytes'] / 1e6:.1f}"


def _add(name: str, rows: Mapping[str, Any]) -> None:
    table = load_figures("plan_table")
    save_figures("plan_table", {**table, name: {**table.get(name, {}), **rows}})


def _of_demo(demo: str, policy: str, scratch: Path, builds: Path | None) -> dict[str, Any]:
    """Figures of every graph of a demo in one precision, by `component/graph`."""
    build = (builds or scratch) / f"{demo}-{policy.replace(' ', '-')}"
    if not build.exists():
        checkpoint = Path(__file__).parents[1] / "checkpoints" / demo
        words = ("--model", str(checkpoint), *POLICIES[policy], "--output", str(build))
        run(["iblip", "export", "build", *words, "--no-verify", "--engine", "onnxruntime"])
    output = scratch / "plans"
    try:
        return dict(_rows(build, output))
    finally:
        shutil.rmtree(output, ignore_errors=True)
        if builds is None:
            shutil.rmtree(build)


def _rows(build: Path, output: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    from iblip.engines.plans import PlanBuild, plans_of_build
    from iblip.engines.tensorrt.libraries import find_library
    from iblip.engines.tensorrt.options import PlanOptions
    from iblip.export.artifact.manifest import Manifest
    from iblip.export.progress import Silent
    from iblip.serving.builder.options import SizeOptions
    from iblip.serving.builder.sizes import profile_options_of_build

    manifest = Manifest.read(build)
    how = PlanBuild(
        library=find_library("tensorrt-rtx"),
        options=PlanOptions(targets=(TARGET,)),
        sizes=profile_options_of_build(manifest, SizeOptions()),
    )
    for outcome in plans_of_build(build, manifest, output, how, Silent()):
        if outcome.plan is None:
            yield outcome.title, {"reason": (outcome.reason or "").replace(f"{build}/", "")}
        else:
            details = outcome.plan.details
            names = ("seconds", "bytes", "layers")
            yield outcome.title, {name: details[name] for name in names}


def _at_size(scratch: Path) -> dict[str, Any]:
    """ViT-g and Q-Former of random weights in fp16: each plan in a process of its own."""
    from dataclasses import replace

    from iblip.export.models.table import MODELS
    from iblip.export.synthesis.checkpoint import Synthesis, synthesize

    checkpoint, build = scratch / SIZED, scratch / "build"
    model = MODELS[SIZED]
    small = replace(model, text={**model.text, "num_hidden_layers": 1})
    synthesize(Synthesis(model=small, dtype="float16", seed=0), checkpoint)
    words = ("--model", str(checkpoint), "--precision", "fp16", "--no-verify")
    run(["iblip", "export", "build", *words, "--engine", "onnxruntime", "--output", str(build)])
    figures = {}
    for graph in ("vision_encoder/model", "qformer/model"):
        output = scratch / "plans"
        plan = ("--engine", "tensorrt-rtx", "--target", TARGET, "--no-engine-cache")
        chosen = ("--graph", graph, "--output", str(output))
        process = run(["iblip", "engines", "build", str(build), *chosen, *plan])
        size = (output / f"{graph}.plan").stat().st_size
        figures[graph] = {**process.to_json(), "bytes": size}
        click.echo(f"{graph}: {figures[graph]}")
        shutil.rmtree(output)
    return figures


if __name__ == "__main__":
    main()
