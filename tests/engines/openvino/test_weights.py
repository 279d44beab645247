"""Weights in few bits on OpenVINO, against ONNX Runtime, and the memory of their files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from iblip.engines.onnxruntime.session import load_onnxruntime
from iblip.engines.openvino.graph import OpenVinoGraph
from iblip.export.artifact.contract import Contract, TensorSpec

pytest.importorskip("openvino")

ROWS, SIZE = 96, 32


def write(directory: Path, bits: int, columns: int, *, zeros: bool, bias: bool) -> OpenVinoGraph:
    random, blocks = np.random.default_rng(0), -(-columns // SIZE)
    arrays = {
        "w": random.integers(0, 256, (ROWS, blocks, SIZE * bits // 8), np.uint8),
        "scales": random.random((ROWS, blocks), np.float32) / 100,
    }
    if zeros:
        arrays["zeros"] = random.integers(0, 256, (ROWS, -(-blocks * bits // 8)), np.uint8)
    if bias:
        arrays["bias"] = random.random(ROWS, np.float32)
    values = {
        name: ir.Value(name=name, const_value=ir.tensor(array, name=name))
        for name, array in arrays.items()
    }
    x, y = (
        ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", size]))
        for name, size in (("x", columns), ("y", ROWS))
    )
    names = ("w", "scales", "zeros", None, "bias")
    node = ir.node(
        "MatMulNBits",
        [x, *map(values.get, names)],
        {"K": columns, "N": ROWS, "bits": bits, "block_size": SIZE, "accuracy_level": 4},
        domain="com.microsoft",
        version=1,
        outputs=[y],
    )
    graph = ir.Graph(
        [x],
        [y],
        nodes=[node],
        initializers=list(values.values()),
        opset_imports={"": 20, "com.microsoft": 1},
        name="matmul",
    )
    model = ir.Model(graph, ir_version=10)
    ir.save(model, directory / "m.onnx", external_data="m.weights", size_threshold_bytes=0)
    contract = Contract(
        inputs=(TensorSpec(name="x", dtype="float32", axes=("n", columns)),),
        outputs=(TensorSpec(name="y", dtype="float32", axes=("n", ROWS)),),
    )
    return OpenVinoGraph(directory / "m.onnx", contract, threads=1, block_size=SIZE)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [128, 96, 112])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_matmul_is_that_of_onnx_runtime(
    tmp_path: Path, bits: int, columns: int, zeros: bool, bias: bool
) -> None:
    graph = write(tmp_path, bits, columns, zeros=zeros, bias=bias)
    x = np.random.default_rng(1).standard_normal((5, columns)).astype(np.float32)
    session = load_onnxruntime().InferenceSession(
        tmp_path / "m.onnx", providers=["CPUExecutionProvider"]
    )
    (wanted,) = session.run(None, {"x": x})
    found = graph({"x": x})["y"]
    assert np.abs(found - wanted).max() < 0.01 * np.abs(wanted).max()


def test_the_weights_files_are_not_held_in_memory(tmp_path: Path) -> None:
    graph = write(tmp_path, 4, 1 << 16, zeros=False, bias=False)
    places = re.findall(
        rf"{re.escape(str(tmp_path))}/m\.weights\n(?:.*\n)*?Rss: +(\d+) kB",
        Path("/proc/self/smaps").read_text(),
    )
    assert places, "the file is mapped as long as the graph is open"
    assert sum(map(int, places)) < (tmp_path / "m.weights").stat().st_size / 1024 / 4
    x = np.ones((1, 1 << 16), np.float32)
    assert np.array_equal(graph({"x": x})["y"], graph({"x": x})["y"])
