"""A traced graph to one whose weights are quantised."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from export.quantisation import blocks, channels
from export.quantisation.options import Quantisation
from export.quantisation.products import products, remove_unused
from export.weights import Recipe


def quantise(
    model: ir.Model, recipes: Mapping[str, Recipe], quantisation: Quantisation
) -> dict[str, Recipe]:
    """Rewrites every product with a weight matrix; returns the recipes of what the graph wants now.

    Args:
        model: a traced graph, changed in place.
        recipes: of the graph's weights, by initializer name.
        quantisation: of its component.
    """
    made = dict(recipes)
    for product in products(model, recipes):
        if quantisation.activations == "float":
            made |= blocks.quantise_product(model, product, quantisation)
        else:
            made |= channels.quantise_product(model, product)
    remove_unused(model, made)
    model.graph.opset_imports.setdefault("com.microsoft", 1)
    return made
