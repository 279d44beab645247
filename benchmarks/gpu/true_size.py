"""Builds of true size without their weights, which are made again at random where they are needed.

    python -m benchmarks.gpu.true_size strip BUILD OUTPUT     here: a few MB
    python -m benchmarks.gpu.true_size fill OUTPUT            there: many GB

For time and memory any numbers do. What is not a large tensor of floats or packed integers (shapes,
indices, norms, biases) keeps its values, so that graphs open and results stay finite.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import ml_dtypes
import numpy as np
import numpy.typing as npt

PLAN, KEPT = "weights.json", "weights.bin"

SMALL = 64 << 10
"""Bytes of a tensor that keeps its values."""

MADE = ("FLOAT", "FLOAT16", "BFLOAT16", "UINT8", "INT8")
"""ONNX's names of dtypes whose large tensors are made."""

SCALE = 0.02
"""Standard deviation of the floats: that of most models before training."""

BLOCK = 16 << 20
"""Bytes of random numbers, which repeat: making all of them anew would take minutes."""


def strip_build(build: Path, output: Path) -> None:
    """Copies the build to `output` with a plan of its weights in their place.

    Args:
        build: of any size.
        output: does not exist yet.
    """
    import onnx

    from benchmarks.gpu.slim import copy_without_weights, weights_of_build

    copy_without_weights(build, output)
    plan: dict[str, Any] = {}
    with (output / KEPT).open("wb") as kept:
        for file, weights in weights_of_build(build).items():
            entry: dict[str, Any] = {"size": (build / file).stat().st_size, "made": [], "kept": []}
            plan[str(file)] = entry
            with (build / file).open("rb") as source:
                for weight in weights:
                    dtype = onnx.TensorProto.DataType.Name(weight.dtype)
                    if dtype in MADE and weight.length > SMALL:
                        entry["made"].append([weight.offset, weight.length, dtype])
                        continue
                    entry["kept"].append([weight.offset, weight.length])
                    source.seek(weight.offset)
                    kept.write(source.read(weight.length))
    (output / PLAN).write_text(json.dumps(plan), encoding="utf-8")


def fill_build(directory: Path) -> int:
    """Makes the weights of a build that `strip_build` wrote; returns their bytes.

    Raises:
        OSError: there is no plan, or no room.
    """
    plan = json.loads((directory / PLAN).read_text(encoding="utf-8"))
    blocks = {dtype: _make_block(dtype) for dtype in MADE}
    written = 0
    with (directory / KEPT).open("rb") as kept:
        for file, entry in plan.items():
            with (directory / file).open("wb") as target:
                target.truncate(entry["size"])
                for offset, length in entry["kept"]:
                    target.seek(offset)
                    written += target.write(kept.read(length))
                for offset, length, dtype in entry["made"]:
                    target.seek(offset)
                    for part in _repeat(blocks[dtype], length):
                        written += target.write(part)
    return written


def _make_block(dtype: str) -> memoryview:
    random = np.random.default_rng(0)
    if dtype in ("UINT8", "INT8"):
        return memoryview(random.bytes(BLOCK))
    width: npt.DTypeLike = {
        "FLOAT": np.float32,
        "FLOAT16": np.float16,
        "BFLOAT16": ml_dtypes.bfloat16,
    }[dtype]
    count = BLOCK // np.dtype(width).itemsize
    values = random.standard_normal(count, np.float32) * SCALE
    return memoryview(values.astype(width).tobytes())


def _repeat(block: memoryview, length: int) -> Iterator[memoryview]:
    """So many bytes of the block, over and over."""
    while length > 0:
        yield block[:length]
        length -= len(block)


@click.group()
def main() -> None:
    """Take the weights out of a build, or make them again."""


@main.command()
@click.argument("build", type=click.Path(path_type=Path, exists=True))
@click.argument("output", type=click.Path(path_type=Path))
def strip(build: Path, output: Path) -> None:
    """Copy BUILD to OUTPUT without its weights."""
    strip_build(build, output)


@main.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True))
def fill(directory: Path) -> None:
    """Make the weights of the build in DIRECTORY."""
    click.echo(f"{directory.name}: {fill_build(directory) / 1e9:.1f} GB of weights were made")


if __name__ == "__main__":
    main()
