"""A copy of a build in which files of weights hold only the bytes that its graphs refer to.

    python -m benchmarks.gpu.slim BUILD OUTPUT

A build shares its checkpoint's files: a graph that uses a tenth of one has all of it beside it. In
the copy the rest are holes, which take no room once packed. Everything else stays as it is, bit for
bit (graphs and their rewrites for CUDA, references, tokenizers, manifest), so that `iblip prove`
accepts the copy; only `inputs.json`, by which a build is repeated, is left out.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import onnx

GRAPHS = "graphs"

LEFT_OUT = "inputs.json"


@dataclass(frozen=True, kw_only=True, order=True)
class Weight:
    """Where a file of weights holds a tensor.

    Attributes:
        offset, length: in bytes.
        dtype: a value of ONNX's `TensorProto.DataType`.
    """

    offset: int
    length: int
    dtype: int


def slim_build(build: Path, output: Path) -> None:
    """Copies the build to `output`, which does not exist yet.

    Raises:
        OSError: a file of weights is missing, or `output` exists.
        ValueError: a file of weights is shorter than its graphs expect.
    """
    weights = weights_of_build(build)
    copy_without_weights(build, output)
    for file, places in weights.items():
        with (build / file).open("rb") as source, (output / file).open("wb") as target:
            target.truncate((build / file).stat().st_size)
            for place in places:
                source.seek(place.offset)
                content = source.read(place.length)
                if len(content) != place.length:
                    raise ValueError(f"{build / file} ends before {place.offset + place.length}")
                target.seek(place.offset)
                target.write(content)


def copy_without_weights(build: Path, output: Path) -> None:
    """Copies all of a build but `LEFT_OUT` and, of its graphs' folders, what is no `.onnx` file."""

    def ignore(folder: str, names: list[str]) -> list[str]:
        if Path(folder) == build:
            return [name for name in names if name == LEFT_OUT]
        inside = build / GRAPHS in Path(folder).parents
        return [name for name in names if inside and not name.endswith(".onnx")]

    shutil.copytree(build, output, ignore=ignore)


def weights_of_build(build: Path) -> Mapping[Path, list[Weight]]:
    """The tensors in each file of weights, by its path in the build; each place once."""
    found: dict[Path, set[Weight]] = {}
    for path in sorted((build / GRAPHS).rglob("*.onnx")):
        for location, weight in weights_of_graph(path):
            found.setdefault((path.parent / location).relative_to(build), set()).add(weight)
    return {file: sorted(weights) for file, weights in found.items()}


def weights_of_graph(path: Path) -> Iterator[tuple[str, Weight]]:
    """The tensors that an ONNX file keeps in other files, with the name of each one's file."""
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            offset, length = int(place.get("offset", 0)), int(place["length"])
            yield place["location"], Weight(offset=offset, length=length, dtype=tensor.data_type)


@click.command()
@click.argument("build", type=click.Path(path_type=Path, exists=True))
@click.argument("output", type=click.Path(path_type=Path))
def main(build: Path, output: Path) -> None:
    """Copy BUILD to OUTPUT, with nothing of its weights but what its graphs refer to."""
    slim_build(build, output)


if __name__ == "__main__":
    main()
