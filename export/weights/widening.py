"""Matrices of float32 islands, bound in the checkpoint's own 16 bits where it has no more.

T5's `wo` computes in float32 inside a graph of 16 bits (`export.precision`). From a checkpoint of
16 bits it would be copied, twice as large, to say the same: so the graph binds the checkpoint's
bytes and widens them itself, which is exact, and which engines do once, when they load it.
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


def narrowed(recipe: Recipe, dtype: str) -> Recipe:
    """Of a matrix that would be copied to be float32 alone: the recipe of the file's own bytes.

    Args:
        recipe: as the trace wants it.
        dtype: that the graph computes in otherwise; other than in `NARROW`, nothing is narrowed.
    """
    lies = isinstance(recipe.source, SourceTensor) and recipe.source.dtype == dtype
    wide = type(recipe) is Recipe and recipe.dtype == "float32" and len(recipe.shape) == 2
    return replace(recipe, dtype=dtype) if lies and wide and dtype in NARROW else recipe


def widen_in_graph(model: ir.Model, recipes: Mapping[str, Recipe], dtype: str) -> dict[str, Recipe]:
    """Binds what can be `narrowed`, with a `Cast` to float32; returns what the graph wants now.

    Args:
        model: changed in place.
        recipes: of its weights, by initializer name.
        dtype: see `narrowed`.
    """
    made = {name: narrowed(recipe, dtype) for name, recipe in recipes.items()}
    for name, recipe in made.items():
        if recipe != recipes[name]:
            _cast(model, model.graph.initializers[name], NARROW[dtype])
    return made


def _cast(model: ir.Model, weight: ir.Value, dtype: ir.DataType) -> None:
    users = tuple(weight.uses())
    node = ir.node("Cast", [weight], {"to": ir.DataType.FLOAT.value})
    (wide,) = node.outputs
    wide.name, wide.shape, wide.type = f"{weight.name}.float32", weight.shape, weight.type
    node.name = wide.name
    weight.type = ir.TensorType(dtype)
    model.graph.insert_before(model.graph[0], node)
    for user, index in users:
        user.replace_input_with(index, wide)
