"""Quantises a traced graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from iblip.export.quantisation import blockwise, channelwise
from iblip.export.quantisation.matmuls import MatMul, find_matmuls, remove_unused
from iblip.export.quantisation.measuring import Measurements
from iblip.export.weights.recipe import Recipe


def quantise(
    model: ir.Model, recipes: Mapping[str, Recipe], measured: Measurements
) -> dict[str, Recipe]:
    """Replaces every multiplication by a weight matrix with a quantised one.

    Args:
        model: a traced graph, changed in place.
        recipes: of the graph's weights, by initializer name.
        measured: how its component is quantised, and what was measured of its matmuls.

    Returns:
        The recipes of the weights that the graph reads now, by initializer name.
    """
    quantised = dict(recipes)
    for matmul in list(find_matmuls(model, recipes)):
        quantised |= _quantise(model, matmul, measured)
    remove_unused(model, quantised)
    if any(node.domain == "com.microsoft" for node in model.graph):
        model.graph.opset_imports.setdefault("com.microsoft", 1)
    return quantised


def _quantise(model: ir.Model, matmul: MatMul, measured: Measurements) -> dict[str, Recipe]:
    quantisation, more_precise = measured.quantisation, matmul.name in measured.sensitive
    if quantisation.activations != "float":
        if more_precise or matmul.cast is not None:
            return {}
        scale = measured.scales.get(matmul.name)
        return channelwise.quantise_matmul(model, matmul, quantisation.format, scale)
    if more_precise:
        quantisation = replace(quantisation, bits=8, method="rtn")
    return blockwise.quantise_matmul(model, matmul, quantisation)
