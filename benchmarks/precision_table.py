"""`python -m benchmarks.precision_table`: what each precision costs in answers, on the demos.

Every demo checkpoint is built in every precision and asked held-out examples greedily. The loss is
relative to the same demo in fp32, on the same examples, in percentage points. 8-bit precisions are
calibrated on held-out examples that are not asked.
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

from benchmarks.measure import load_figures, run, save_figures
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
"""By name: the arguments after `--precision`."""

MOST_LOST: Mapping[str, float] = {"int8": 1.0, "int4": 2.0, "int8-fp16": 1.0, "fp8": 1.0}
"""Percentage points of accuracy that a precision may lose."""

CALIBRATED = ("int8", "int8-fp16", "fp8")
"""Precisions whose builds calibrate on images."""

KEPT_BACK = 100
"""Number of examples, from the end, used for calibration only."""

AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The answers of one build.

    Attributes:
        texts: one for each example.
        right: whether each is the example's answer.
        weight_bytes: of all weights in its graphs, shared ones counted once.
    """

    texts: Sequence[str]
    right: Sequence[bool]
    weight_bytes: int


@click.command()
@click.option("--demo", "demos", multiple=True, default=DEMOS, type=click.Choice(DEMOS))
@click.option("--policy", "policies", multiple=True, default=POLICIES, type=click.Choice(POLICIES))
@click.option("--limit", type=int, help="Most examples to ask. Default: all.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the losses as PNG.")
def main(
    demos: tuple[str, ...], policies: tuple[str, ...], limit: int | None, plot: Path | None
) -> None:
    """Measure, and keep the figures in `benchmarks/results.json`."""
    quiet_libraries()
    table = load_figures("precision_table")
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".benchmarks-") as scratch:
        for demo in demos:
            rows = figures(DEMO.parent / demo, Path(scratch), policies, limit)
            table[demo] = {**table.get(demo, {}), **rows}
            save_figures("precision_table", table)
            click.echo(f"{demo}: {json.dumps(table[demo], indent=2)}")
    if plot is not None:
        plot_losses(plot, table)


def figures(
    checkpoint: Path, scratch: Path, policies: Sequence[str], limit: int | None
) -> dict[str, Any]:
    """Figures by policy, with those of fp32."""
    examples = read_examples(checkpoint / "examples")
    write_calibration(examples[-KEPT_BACK:], scratch / "calibration")
    examples = examples[:-KEPT_BACK][:limit]
    base = ask(checkpoint, scratch, "fp32", examples)
    table = {"fp32": _figures(base, base, None)}
    for policy in policies:
        if policy != "fp32":
            word = POLICIES[policy][0]
            answers = ask(checkpoint, scratch, policy, examples)
            table[policy] = _figures(answers, base, MOST_LOST.get(word))
    return table


def write_calibration(examples: Sequence[Example], directory: Path) -> None:
    """Puts these examples into a directory of their own, as `--calibration` takes it."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    with (directory / "examples.jsonl").open("w") as stream:
        for example in examples:
            shutil.copy(example.image, directory)
            row = {"id": example.name, "image": example.image.name, "prompt": example.prompt}
            stream.write(json.dumps({**row, "answer": example.answer}) + "\n")


def ask(checkpoint: Path, scratch: Path, policy: str, examples: Sequence[Example]) -> Answers:
    """Builds, asks the examples, and removes the build."""
    output = scratch / "build"
    arguments = ["--precision", *POLICIES[policy], "--output", str(output), "--no-verify"]
    if POLICIES[policy][0] in CALIBRATED:
        arguments += ["--calibration", str(scratch / "calibration")]
    run(["iblip", "export", "build", "--model", str(checkpoint), *arguments])
    preprocessing = Manifest.read(output).preprocessing
    with Pipeline(output) as pipeline, ThreadPoolExecutor(AT_ONCE) as pool:

        def text(example: Example) -> str:
            pixels = pixels_from_image(example.image, preprocessing)
            return pipeline.answer(pixels, example.prompt).text

        texts = list(pool.map(text, examples))
    answers = Answers(
        texts=texts,
        right=[e.is_right(text) for e, text in zip(examples, texts, strict=True)],
        weight_bytes=weight_bytes(output),
    )
    shutil.rmtree(output)
    return answers


def weight_bytes(build: Path) -> int:
    """Bytes of all weights in the graphs; those that several graphs share count once."""
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


def _figures(answers: Answers, base: Answers, most_lost: float | None) -> dict[str, Any]:
    count = len(answers.texts)
    lost = 100 * (sum(base.right) - sum(answers.right)) / count
    same = sum(a == b for a, b in zip(answers.texts, base.texts, strict=True))
    figures = {
        "examples": count,
        "accuracy": round(sum(answers.right) / count, 4),
        "points_lost": round(lost, 2),
        "same_text": round(same / count, 4),
        "weight_bytes": answers.weight_bytes,
    }
    if most_lost is None:
        return figures
    return {**figures, "most_lost": most_lost, "kept": lost <= most_lost}


if __name__ == "__main__":
    main()
