"""The weights that one run of a graph reads: their bytes, and the matrices among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import onnx

from iblip.export.artifact.references import GraphWeights

PRODUCTS = ("MatMul", "Gemm", "FusedMatMul", "MatMulInteger")
"""Operators that multiply activations by a matrix."""

PASSED = ("Transpose", "Cast", "DequantizeLinear", "Identity")
"""Operators between a matrix as it is stored and its product."""

LOOKED_UP = ("Gather", "GatherBlockQuantized")
"""Operators that read a few rows of a table: its bytes do not count."""


def weights_read(path: Path) -> GraphWeights:
    """What the graph at `path` reads of its weights in a run. Reads no weight.

    Args:
        path: of the `.onnx` file.
    """
    graph = onnx.load(path, load_external_data=False).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    products: Counter[tuple[int, int]] = Counter()
    used: set[str] = set()
    for node in graph.node:
        if node.op_type in LOOKED_UP:
            continue
        used.update(name for name in node.input if name in stored)
        if node.op_type == "MatMulNBits":
            sizes = {a.name: a.i for a in node.attribute}
            products[sizes["K"], sizes["N"]] += 1
        elif node.op_type in PRODUCTS:
            for name in node.input[:2]:
                if shape := _matrix(name, stored, made):
                    products[shape] += 1
    return GraphWeights(
        bytes=sum(_bytes(stored[name]) for name in used),
        products=tuple((rows, columns, n) for (rows, columns), n in sorted(products.items())),
    )


def _matrix(
    name: str, stored: Mapping[str, onnx.TensorProto], made: Mapping[str, onnx.NodeProto]
) -> tuple[int, int] | None:
    """The shape of a stored matrix behind a value; `None` if it is an activation."""
    turned = False
    while name not in stored:
        node = made.get(name)
        if node is None or node.op_type not in PASSED:
            return None
        turned ^= node.op_type == "Transpose"
        name = node.input[0]
    shape = tuple(stored[name].dims)
    if len(shape) != 2:
        return None
    return (shape[1], shape[0]) if turned else (shape[0], shape[1])


def _bytes(tensor: onnx.TensorProto) -> int:
    place = {entry.key: entry.value for entry in tensor.external_data}
    return int(place["length"]) if "length" in place else len(tensor.raw_data)
