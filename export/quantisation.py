"""Weights in four bits: which products of a graph take them, and how they are made.

Each row of a weight matrix is cut into blocks; a block keeps one float32 scale and a whole number
from 0 to 15 a weight. ONNX Runtime multiplies by such a matrix without unpacking it
(`com.microsoft.MatMulNBits`). Quantising is a recipe like a cast: one tensor at a time, when the
graph is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from export.weights import Recipe

Floats = npt.NDArray[np.float32]

BLOCK = 32
"""Weights a scale. ONNX Runtime takes powers of two from 16."""

ACCURACY_LEVEL = 4
"""Activations are rounded to int8 a block, as llama.cpp does; level 0 would keep float32, and take
several times as long."""

_ROWS = 1024  # of a matrix that are worked on at once


@dataclass(frozen=True, kw_only=True)
class Int4Scales(Recipe):
    """The scale of every block of a matrix `[out, in]`: float32 `[out, blocks]`.

    The weight of greatest magnitude becomes 0, which stands for -8 scales: so the whole range of a
    block without its like on the other side is used, as in llama.cpp's Q4_0.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """`[out, blocks]`."""
        rows, columns = self.source.shape
        return rows, math.ceil(columns / BLOCK)

    @property
    def in_place(self) -> None:
        """Never: these are no bytes of the checkpoint."""

    def evaluate(self) -> npt.NDArray[Any]:
        """Reads the matrix, some rows at a time."""
        return np.concatenate([scales_from_blocks(blocks) for blocks in _blocks(self)])


@dataclass(frozen=True, kw_only=True)
class Int4Weights(Int4Scales):
    """The weights themselves: uint8 `[out, blocks, BLOCK / 2]`, two a byte, the first one low."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`[out, blocks, BLOCK / 2]`."""
        return *super().shape, BLOCK // 2

    def evaluate(self) -> npt.NDArray[Any]:
        """Reads and rounds the matrix, some rows at a time."""
        return np.concatenate(
            [packed_from_blocks(blocks, scales_from_blocks(blocks)) for blocks in _blocks(self)]
        )


def quantise(model: ir.Model, recipes: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """Rewrites every product with a weight matrix; returns the recipes of what the graph wants now.

    Args:
        model: a traced graph, changed in place: where an input is multiplied by a transposed weight
            `[out, in]`, the product becomes one `MatMulNBits`, with its bias where it is a `Gemm`.
        recipes: of the graph's weights, by initializer name.
    """
    made = dict(recipes)
    for node in list(model.graph):
        weight = _weight(node)
        if weight is not None and weight.name is not None and weight.name in recipes:
            recipe = recipes[weight.name]
            parts = {"int4": Int4Weights, "int4_scales": Int4Scales}
            dtypes = {"int4": "uint8", "int4_scales": "float32"}
            for part, kind in parts.items():
                name = f"{weight.name}.{part}"
                made[name] = kind(source=recipe.source, dtype=dtypes[part])
                if name not in model.graph.initializers:
                    _declare(model, name, made[name])
            values = [model.graph.initializers[f"{weight.name}.{part}"] for part in parts]
            _replace(model, node, recipe.source.shape, values)
    _remove_unused(model, made)
    return made


def scales_from_blocks(blocks: Floats) -> Floats:
    """The scales `[rows, blocks]` of `[rows, blocks, BLOCK]`."""
    largest = np.abs(blocks).argmax(axis=2, keepdims=True)
    scales: Floats = np.take_along_axis(blocks, largest, axis=2)[..., 0] / np.float32(-8)
    return scales


def packed_from_blocks(blocks: Floats, scales: Floats) -> npt.NDArray[np.uint8]:
    """Whole numbers 0 to 15, two a byte, `[rows, blocks, BLOCK / 2]`; 8 stands for 0."""
    divisors = np.where(scales == 0, np.float32(1), scales)[..., None]
    numbers = np.clip(np.rint(blocks / divisors) + 8, 0, 15).astype(np.uint8)
    packed: npt.NDArray[np.uint8] = numbers[..., 0::2] | (numbers[..., 1::2] << 4)
    return packed


def _blocks(recipe: Recipe) -> Iterator[Floats]:
    """Some rows at a time as float32 `[rows, blocks, BLOCK]`, zeros after a row's end."""
    matrix = recipe.source.read()
    rows, columns = matrix.shape
    spare = -columns % BLOCK
    for start in range(0, rows, _ROWS):
        part = matrix[start : start + _ROWS].astype(np.float32)
        yield np.pad(part, ((0, 0), (0, spare))).reshape(len(part), -1, BLOCK)


def _weight(node: ir.Node) -> ir.Value | None:
    """The matrix `[out, in]` whose transpose this node multiplies by, if it is such a node.

    torch makes a `Gemm` of a linear layer over two axes, as OPT has them.
    """
    if node.op_type == "Gemm" and _is_linear(node):
        return node.inputs[1]
    if node.op_type != "MatMul":
        return None
    right = node.inputs[1]
    turned = None if right is None else right.producer()
    if turned is None or turned.op_type != "Transpose":
        return None
    return turned.inputs[0]


def _is_linear(gemm: ir.Node) -> bool:
    """Whether it is `x @ weight.T + bias` and nothing more."""
    given = {name: attribute.value for name, attribute in gemm.attributes.items()}
    return {"alpha": 1.0, "beta": 1.0, "transA": 0, **given} == {
        "alpha": 1.0,
        "beta": 1.0,
        "transA": 0,
        "transB": 1,
    }


def _declare(model: ir.Model, name: str, recipe: Recipe) -> None:
    dtype = ir.DataType.UINT8 if recipe.dtype == "uint8" else ir.DataType.FLOAT
    value = ir.Value(name=name, shape=ir.Shape(recipe.shape), type=ir.TensorType(dtype))
    model.graph.initializers[name] = value


def _replace(model: ir.Model, node: ir.Node, shape: tuple[int, ...], parts: list[ir.Value]) -> None:
    """Puts `MatMulNBits` in the place of a product with a matrix of this shape."""
    rows, columns = shape
    bias = [None, None, *node.inputs[2:]] if len(node.inputs) > 2 else []
    product = ir.node(
        "MatMulNBits",
        [node.inputs[0], *parts, *bias],
        {
            "K": columns,
            "N": rows,
            "bits": 4,
            "block_size": BLOCK,
            "accuracy_level": ACCURACY_LEVEL,
        },
        domain="com.microsoft",
        version=1,
    )
    old, new = node.outputs[0], product.outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], [product], [old], [new])


def _remove_unused(model: ir.Model, recipes: dict[str, Recipe]) -> None:
    ir.passes.common.RemoveUnusedNodesPass()(model)
    for name in list(recipes):
        if name not in model.graph.initializers:
            del recipes[name]
    model.graph.opset_imports.setdefault("com.microsoft", 1)
