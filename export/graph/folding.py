"""Constants that torch's exporter works out at run time, worked out when the graph is written.

It writes the axes of a mean as `Reshape([-1], [-1])`, and TensorRT's parser wants axes that are
constants. Only what is made of the graph's own small constants is folded: weights have no
values yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]

MOST = 1024
"""Elements of a constant that is folded."""


def _cast(node: ir.Node, values: Array) -> Array:
    return values.astype(ir.DataType(node.attributes["to"].as_int()).numpy())


def _reshape(node: ir.Node, values: Array, shape: Array) -> Array:
    return values.reshape([int(size) for size in shape])


FOLDS: Mapping[str, Callable[..., Array]] = {"Cast": _cast, "Reshape": _reshape}
"""Operator to what it makes of constants: those of which torch's exporter leaves some."""


def fold_constants(model: ir.Model) -> None:
    """Puts a `Constant` in the place of every operator of `FOLDS` that has constants alone."""
    for node in model.graph:
        values = [_constant(value) for value in node.inputs]
        if node.op_type not in FOLDS or any(value is None for value in values):
            continue
        made = ir.node("Constant", [], {"value": ir.tensor(FOLDS[node.op_type](node, *values))})
        made.metadata_props.update(node.metadata_props)
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], [made], node.outputs, made.outputs
        )


def _constant(value: ir.Value | None) -> Array | None:
    """What a small constant is; `None` of anything else."""
    maker = None if value is None else value.producer()
    if maker is None or maker.op_type != "Constant":
        return None
    if "value_ints" in maker.attributes:
        return np.array(maker.attributes["value_ints"].as_ints(), np.int64)
    tensor = maker.attributes["value"].as_tensor() if "value" in maker.attributes else None
    return None if tensor is None or tensor.size > MOST else tensor.numpy()
