"""A traced graph to one whose weights are quantised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from iblip.export.quantisation import blocks, channels
from iblip.export.quantisation.measuring import Measurements
from iblip.export.quantisation.products import Product, products, remove_unused
from iblip.export.weights.recipe import Recipe


def quantise(
    model: ir.Model, recipes: Mapping[str, Recipe], measured: Measurements
) -> dict[str, Recipe]:
    """Rewrites every product with a weight matrix; returns the recipes of what the graph wants now.

    Args:
        model: a traced graph, changed in place.
        recipes: of the graph's weights, by initializer name.
        measured: how its component is quantised, and what was found of its products.
    """
    made = dict(recipes)
    for product in list(products(model, recipes)):
        made |= _quantised(model, product, measured)
    remove_unused(model, made)
    if any(node.domain == "com.microsoft" for node in model.graph):
        model.graph.opset_imports.setdefault("com.microsoft", 1)
    return made


def _quantised(model: ir.Model, product: Product, measured: Measurements) -> dict[str, Recipe]:
    quantisation, more_precise = measured.quantisation, product.name in measured.sensitive
    if quantisation.activations != "float":
        if more_precise:
            return {}
        scale = measured.scales.get(product.name)
        return channels.quantise_product(model, product, quantisation.format, scale)
    if more_precise:
        quantisation = replace(quantisation, bits=8, method="rtn")
    return blocks.quantise_product(model, product, quantisation)
