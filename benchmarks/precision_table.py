"""`python -m benchmarks.precision_table`: what each precision costs in answers, on the demos.

Every demo checkpoint is built in every precision, and asked held-out examples, greedily. The loss
is against the same demo in fp32, on the same examples, in points of a hundred. What eight
bits are calibrated on are held-out examples that are not asked.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import onnx

from benchmarks.measure import keep, kept, run
from benchmarks.plots import plot_losses
from checkpoints import DEMOS
from iblip.engines.pipeline import Pipeline
from iblip.export.artifact.manifest import Manifest
from iblip.export.checkpoint.checkpoint import DEMO
from iblip.export.examples import Example, read_examples
from iblip.export.images import pixels_from_image
from iblip.serving.cli.quiet import quiet_libraries

POLICIES: Mapping[str, tuple[str, ...]] = {
    "fp32": ("fp32",),
    "fp16": ("fp16",),
    "bf16": ("bf16",),
    "lavis": ("lavis",),
    "int8": ("int8",),
    "int8, static": ("int8", "--int8", "static"),
    "int8, dynamic language model": ("int8", "--llm-int8", "dynamic"),
    "int4": ("int4",),
    "int4, asymmetric": ("int4", "--asymmetric"),
    "int4, k-quant": ("int4", "--int4-method", "k-quant"),
    "int8-fp16": ("int8-fp16",),
    "fp8": ("fp8",),
}
"""By name: what follows `--precision`."""

MOST_LOST: Mapping[str, float] = {"int8": 1.0, "int4": 2.0, "int8-fp16": 1.0, "fp8": 1.0}
"""By precision word: points of accuracy that it may lose."""

CALIBRATED = ("int8", "int8-fp16", "fp8")
"""The precision words whose builds look at images."""

KEPT_BACK = 100
"""The last examples: for calibration, never asked."""

AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The answers of one build.

    Attributes:
        texts: one an example.
        right: whether each is the example's answer.
        weight_bytes: of all weights that its graphs bind, each file's part once.
    """

    texts: Sequence[str]
    right: Sequence[bool]
    weight_bytes: int


@click.command()
@click.option("--demo", "demos", multiple=True, default=DEMOS, type=click.Choice(DEMOS))
@click.option("--policy", "policies", multiple=True, default=POLICIES, type=click.Choice(POLICIES))
@click.option("--limit", type=int, help="So many examples; all of them if it is left out.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the losses as SVG.")
def main(
    demos: tuple[str, ...], policies: tuple[str, ...], limit: int | None, plot: Path | None
) -> None:
    """Measure, and keep the figures in `benchmarks/results.json`."""
    quiet_libraries()
    table = kept("precision_table")
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".benchmarks-") as scratch:
        for demo in demos:
            found = figures(DEMO.parent / demo, Path(scratch), policies, limit)
            table[demo] = {**table.get(demo, {}), **found}
            keep("precision_table", table)
            click.echo(f"{demo}: {json.dumps(table[demo], indent=2)}")
    if plot is not None:
        plot_losses(plot, table)


def figures(
    checkpoint: Path, scratch: Path, policies: Sequence[str], limit: int | None
) -> dict[str, Any]:
    """By policy, beside fp32's own figures."""
    examples = read_examples(checkpoint / "examples")
    write_calibration(examples[-KEPT_BACK:], scratch / "calibration")
    examples = examples[:-KEPT_BACK][:limit]
    base = ask(checkpoint, scratch, "fp32", examples)
    found = {"fp32": _figures(base, base, None)}
    for policy in policies:
        if policy != "fp32":
            word = POLICIES[policy][0]
            asked = ask(checkpoint, scratch, policy, examples)
            found[policy] = _figures(asked, base, MOST_LOST.get(word))
    return found


def write_calibration(examples: Sequence[Example], directory: Path) -> None:
    """Puts these examples into a directory of their own, as `--calibration` takes it."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    with (directory / "examples.jsonl").open("w") as stream:
        for example in examples:
            shutil.copy(example.image, directory)
            row = {"id": example.name, "image": example.image.name, "prompt": example.prompt}
            stream.write(json.dumps({**row, "answer": example.answer}) + "\n")


def ask(checkpoint: Path, scratch: Path, policy: str, examples: Sequence[Example]) -> Asked:
    """Builds, asks, and removes the build."""
    output = scratch / "build"
    asked_for = ["--precision", *POLICIES[policy], "--output", str(output), "--no-verify"]
    if POLICIES[policy][0] in CALIBRATED:
        asked_for += ["--calibration", str(scratch / "calibration")]
    run(["iblip", "export", "build", "--model", str(checkpoint), *asked_for])
    preprocessing = Manifest.read(output).preprocessing
    with Pipeline(output) as pipeline, ThreadPoolExecutor(AT_ONCE) as pool:

        def text(example: Example) -> str:
            pixels = pixels_from_image(example.image, preprocessing)
            return pipeline.answer(pixels, example.prompt).text

        texts = list(pool.map(text, examples))
    asked = Asked(
        texts=texts,
        right=[e.is_right(text) for e, text in zip(examples, texts, strict=True)],
        weight_bytes=weight_bytes(output),
    )
    shutil.rmtree(output)
    return asked


def weight_bytes(build: Path) -> int:
    """Bytes of every weight that the graphs bind; of what several graphs share, once."""
    places: dict[tuple[Path, int], int] = {}
    for record in Manifest.read(build).components.values():
        for graph in record.graphs.values():
            path = build / graph.path
            for tensor in onnx.load(path, load_external_data=False).graph.initializer:
                place = {entry.key: entry.value for entry in tensor.external_data}
                if place:
                    key = (path.parent / place["location"], int(place["offset"]))
                    places[key] = int(place["length"])
    return sum(places.values())


def _figures(asked: Asked, base: Asked, most_lost: float | None) -> dict[str, Any]:
    count = len(asked.texts)
    lost = 100 * (sum(base.right) - sum(asked.right)) / count
    same = sum(a == b for a, b in zip(asked.texts, base.texts, strict=True))
    found = {
        "examples": count,
        "accuracy": round(sum(asked.right) / count, 4),
        "points_lost": round(lost, 2),
        "same_text": round(same / count, 4),
        "weight_bytes": asked.weight_bytes,
    }
    if most_lost is None:
        return found
    return {**found, "most_lost": most_lost, "kept": lost <= most_lost}


if __name__ == "__main__":
    main()
