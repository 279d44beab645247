"""Keeps matrices that a graph needs in float32 in the checkpoint's own 16 bits.

T5's `wo` computes in float32 inside a graph of 16 bits (`export.precision`). From a checkpoint of
16 bits it would be copied at twice the size without any gain. So the graph binds the checkpoint's
bytes and casts them to float32 itself, which is exact, and which engines do once, at load time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from iblip.export.weights.recipe import Recipe
from iblip.export.weights.weight import SourceTensor

NARROW: Mapping[str, ir.DataType] = {
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}
"""ONNX's dtypes of 16 bits, by the contract's names."""


def narrow(recipe: Recipe, dtype: str) -> Recipe:
    """Returns the recipe that binds the file's own bytes, if only a cast to float32 prevents it.

    Args:
        recipe: of a weight as the trace has it; returned as it is unless it is such a matrix.
        dtype: that the rest of the graph computes in; nothing is narrowed unless it is in `NARROW`.
    """
    in_file = isinstance(recipe.source, SourceTensor) and recipe.source.dtype == dtype
    is_wide = type(recipe) is Recipe and recipe.dtype == "float32" and len(recipe.shape) == 2
    return replace(recipe, dtype=dtype) if in_file and is_wide and dtype in NARROW else recipe


def widen_in_graph(model: ir.Model, recipes: Mapping[str, Recipe], dtype: str) -> dict[str, Recipe]:
    """Narrows weights where that is possible, and puts a `Cast` to float32 behind each.

    Args:
        model: changed in place.
        recipes: of its weights, by initializer name.
        dtype: that the rest of the graph computes in.

    Returns:
        The recipes of the weights that the graph reads now.
    """
    narrowed = {name: narrow(recipe, dtype) for name, recipe in recipes.items()}
    for name, recipe in narrowed.items():
        if recipe != recipes[name]:
            _insert_cast(model, model.graph.initializers[name], NARROW[dtype])
    return narrowed


def _insert_cast(model: ir.Model, weight: ir.Value, dtype: ir.DataType) -> None:
    users = tuple(weight.uses())
    node = ir.node("Cast", [weight], {"to": ir.DataType.FLOAT.value})
    (wide,) = node.outputs
    wide.name, wide.shape, wide.type = f"{weight.name}.float32", weight.shape, weight.type
    node.name = wide.name
    weight.type = ir.TensorType(dtype)
    model.graph.insert_before(model.graph[0], node)
    for user, index in users:
        user.replace_input_with(index, wide)
