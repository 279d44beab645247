"""Folds constants that torch's exporter leaves to be computed at run time.

It writes the axes of a mean as `Reshape([-1], [-1])`, and TensorRT's parser requires axes that are
constants. Only what depends on the graph's own small constants is folded: weights have no values
yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]

LARGEST = 1024
"""Largest number of elements of a constant that is folded."""


def _cast(node: ir.Node, values: Array) -> Array:
    return values.astype(ir.DataType(node.attributes["to"].as_int()).numpy())


def _reshape(node: ir.Node, values: Array, shape: Array) -> Array:
    return values.reshape([int(size) for size in shape])


FOLDS: Mapping[str, Callable[..., Array]] = {"Cast": _cast, "Reshape": _reshape}
"""What an operator computes from constants, for those that torch's exporter leaves in a graph."""


def fold_constants(model: ir.Model) -> None:
    """Replaces every operator of `FOLDS` whose inputs are all constants with a `Constant`."""
    for node in model.graph:
        values = [_constant(value) for value in node.inputs]
        if node.op_type not in FOLDS or any(value is None for value in values):
            continue
        folded = ir.node("Constant", [], {"value": ir.tensor(FOLDS[node.op_type](node, *values))})
        folded.metadata_props.update(node.metadata_props)
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], [folded], node.outputs, folded.outputs
        )


def _constant(value: ir.Value | None) -> Array | None:
    """Returns the value of a small constant; `None` for anything else."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Constant":
        return None
    if "value_ints" in node.attributes:
        return np.array(node.attributes["value_ints"].as_ints(), np.int64)
    tensor = node.attributes["value"].as_tensor() if "value" in node.attributes else None
    return None if tensor is None or tensor.size > LARGEST else tensor.numpy()
