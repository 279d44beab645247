"""Prepares graphs in bfloat16 for ONNX Runtime on a CPU, which has few kernels for it.

Weights, inputs and outputs stay in bfloat16, and every result is rounded to it; each operator
computes in float32 between two casts. An operator that only moves values needs no rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

MOVING = frozenset(
    {
        *("Concat", "Expand", "Flatten", "Gather", "GatherND", "Identity", "Neg", "Pad", "Reshape"),
        *("ScatterND", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where"),
    }
)
"""Operators whose results are values of their inputs, or 0."""


def with_casts(path: Path) -> bytes | None:
    """Returns the graph at `path` after `compute_in_float32`; `None` if nothing is bfloat16."""
    import onnx_ir as ir

    model = ir.load(path)
    return ir.to_proto(model).SerializeToString() if compute_in_float32(model) else None


def compute_in_float32(model: ir.Model) -> bool:
    """Puts casts around every operator that reads or writes bfloat16; changes `model` in place.

    Returns:
        Whether there is one.
    """
    import onnx_ir as ir
    import onnx_ir.passes.common as passes

    narrow = ir.DataType.BFLOAT16
    wide: dict[ir.Value, ir.Value] = {}  # bfloat16 values to the same in float32
    for node in list(model.graph):
        if node.op_type == "Constant" and "value" in node.attributes:
            node.outputs[0].dtype = node.attributes["value"].as_tensor().dtype
        if node.op_type in ("Cast", "Constant"):
            continue
        for index, value in enumerate(list(node.inputs)):
            if value is not None and value.dtype == narrow:
                node.replace_input_with(index, _widen(model.graph, value, wide))
        for output in node.outputs:
            if output.dtype == narrow:
                _narrow(model.graph, node, output, wide)
    passes.RemoveUnusedNodesPass()(model)
    return bool(wide)


def _widen(graph: ir.Graph, value: ir.Value, wide: dict[ir.Value, ir.Value]) -> ir.Value:
    """Returns the value in float32, which is cast once for all that read it."""
    import onnx_ir as ir

    if value not in wide:
        cast, producer = _cast(value, ir.DataType.FLOAT), value.producer()
        if producer is None:  # an input or a weight
            graph.insert_before(graph[0], cast)
        else:
            graph.insert_after(producer, cast)
        wide[value] = cast.outputs[0]
    return wide[value]


def _narrow(
    graph: ir.Graph, node: ir.Node, output: ir.Value, wide: dict[ir.Value, ir.Value]
) -> None:
    """Has the node write float32, and a cast behind it the old value under the old name."""
    import onnx_ir as ir

    cast = _cast(output, ir.DataType.BFLOAT16)
    narrow = cast.outputs[0]
    graph.insert_after(node, cast)
    ir.convenience.replace_all_uses_with(output, narrow, replace_graph_outputs=True)
    cast.replace_input_with(0, output)
    narrow.name, output.name = output.name, f"{output.name}.float32"
    output.dtype = ir.DataType.FLOAT
    if node.op_type in MOVING:
        wide[narrow] = output


def _cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    import onnx_ir as ir

    node = ir.node("Cast", [value], {"to": dtype.value})
    node.outputs[0].dtype, node.outputs[0].shape = dtype, value.shape
    return node
