"""Where the weights of a written graph lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from safetensors.numpy import save_file

from iblip.export.artifact.contract import DTYPES, Contract
from iblip.export.checkpoint.safetensors import tensors_from_safetensors
from iblip.export.components.component import Component
from iblip.export.graph.source_digests import SourceDigests
from iblip.export.graph.writing import BoundGraph, write_graphs
from iblip.export.weights.recipe import Recipe

COMPONENT = Component(
    component="qformer",
    graph="model",
    precision="fp32",
    contract=Contract(inputs=(), outputs=()),
    kind=lambda: pytest.fail("nothing is traced here"),
)
VALUES = {"one": np.full(4, 1, np.float32), "two": np.full(4, 2, np.float32)}


def model() -> ir.Model:
    """A graph of two weights without values, and nothing else."""
    made = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 20]> g () => () {}')
    for name in VALUES:
        value = ir.Value(name=name, shape=ir.Shape([4]), type=ir.TensorType(ir.DataType.FLOAT))
        made.graph.initializers[name] = value
    return made


@pytest.fixture
def recipes(tmp_path: Path) -> dict[str, Recipe]:
    """A weight of each of two files, which have one name in two directories."""
    made = {}
    for name, values in VALUES.items():
        file = tmp_path / name / "model.safetensors"
        file.parent.mkdir()
        save_file({name: values}, file)
        made[name] = Recipe(source=tensors_from_safetensors(file)[name], dtype="float32")
    return made


def two_of(recipes: dict[str, Recipe]) -> list[BoundGraph]:
    """Two graphs of one folder with the same weights."""
    other = replace(COMPONENT, graph="other")
    return [BoundGraph(component=c, model=model(), recipes=recipes) for c in (COMPONENT, other)]


def read(path: Path) -> dict[str, list[float]]:
    made = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        made[tensor.name] = np.fromfile(
            path.parent / place["location"], np.float32, count=4, offset=int(place["offset"])
        ).tolist()
    return made


def test_files_of_one_name_from_two_directories_are_both_linked(
    recipes: dict[str, Recipe], tmp_path: Path
) -> None:
    (directory := tmp_path / "graphs").mkdir()
    for graph in write_graphs(
        two_of(recipes), directory, lambda amount: None, SourceDigests((), ())
    ):
        assert [path.name for path in graph.weights] == ["model.safetensors", "model-2.safetensors"]
        assert read(graph.path) == {name: values.tolist() for name, values in VALUES.items()}
    for file, name in zip(graph.weights, VALUES, strict=True):
        assert file.samefile(tmp_path / name / "model.safetensors")


def test_files_are_copied_where_there_are_no_links(
    recipes: dict[str, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError

    monkeypatch.setattr("os.link", refuse)
    (directory := tmp_path / "graphs").mkdir()
    for graph in write_graphs(
        two_of(recipes), directory, lambda amount: None, SourceDigests((), ())
    ):
        assert len(list(graph.path.parent.glob("*.safetensors"))) == 2
        assert read(graph.path) == {name: values.tolist() for name, values in VALUES.items()}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_in_pieces_are_those_in_one(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).standard_normal((50, 7)).astype(np.float32)
    save_file({"scalar": np.array(3, np.float32), "matrix": values}, tmp_path / "model.safetensors")
    monkeypatch.setattr("iblip.export.weights.weight.PIECE", 100)  # three rows
    for name, tensor in tensors_from_safetensors(tmp_path / "model.safetensors").items():
        recipe = Recipe(source=tensor, dtype=dtype)
        pieces = list(recipe.pieces())
        assert len(pieces) == (1 if name == "scalar" else 17)
        wanted = tensor.read().astype(DTYPES[dtype])
        np.testing.assert_array_equal(recipe.evaluate(), wanted)
        assert sum(piece.nbytes for piece in pieces) == recipe.nbytes == wanted.nbytes
