"""Runs a traced graph in float32, piece by piece, and shows the activations of its matmuls.

A graph is cut behind every block of its stacks. Only the weights of the piece that runs are in
memory, and what a later piece reads is kept, so memory does not grow with the number of blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from iblip.export.components.block_marks import OUTPUT
from iblip.export.graph.bfloat16 import compute_in_float32
from iblip.export.graph.onnxruntime_values import run
from iblip.export.quantisation.matmuls import MatMul, find_matmuls
from iblip.export.weights.recipe import Recipe

Arrays = dict[str, npt.NDArray[Any]]
"""Tensors by name."""

Observe = Callable[[MatMul, list[npt.NDArray[np.float32]]], None]
"""Called with a matmul and its activations in every sample."""


def run_in_pieces(
    model: ir.Model, recipes: Mapping[str, Recipe], samples: Sequence[Arrays], observe: Observe
) -> list[Arrays]:
    """Runs every sample through the graph and returns its outputs, by sample.

    Args:
        model: as traced; not changed.
        recipes: of its weights.
        samples: inputs of the graph.
        observe: called once for every matmul, in the graph's order.
    """
    if any(value.dtype == ir.DataType.BFLOAT16 for value in model.graph.initializers.values()):
        model = model.clone()
        compute_in_float32(model)
    matmuls = list(find_matmuls(model, recipes))
    ends = {value.name for value in model.graph.outputs}
    values = [dict(sample) for sample in samples]
    pieces = list(_pieces(model.graph))
    for index, piece in enumerate(pieces):
        later = {v.name for other in pieces[index + 1 :] for n in other for v in n.inputs if v}
        here = [matmul for matmul in matmuls if matmul.node in piece]
        outputs = {matmul.input.name for matmul in here} | {
            value.name for node in piece for value in node.outputs if value.name in later | ends
        }
        _run(model, recipes, piece, sorted(filter(None, outputs)), values)
        for matmul in here:
            observe(matmul, [held[str(matmul.input.name)] for held in values])
        for held in values:
            for name in held.keys() - later - ends:
                del held[name]
    return [{name: held[name] for name in ends if name} for held in values]


def _pieces(graph: ir.Graph) -> Iterator[list[ir.Node]]:
    """Yields the nodes up to the end of each block. Constants belong to every piece."""
    piece: list[ir.Node] = []
    for node in graph:
        if node.op_type == "Constant":
            continue
        piece.append(node)
        if any((value.name or "").endswith(OUTPUT) for value in node.outputs):
            yield piece
            piece = []
    if piece:
        yield piece


def _run(
    model: ir.Model,
    recipes: Mapping[str, Recipe],
    piece: list[ir.Node],
    outputs: list[str],
    values: list[Arrays],
) -> None:
    """Runs a piece on every sample, and adds `outputs`, names of values, to those of the sample."""
    import onnxruntime

    read = {v.name: v for node in piece for v in node.inputs if v is not None and v.name}
    computed = {value.name for node in piece for value in node.outputs}
    constants = [
        producer
        for value in read.values()
        if (producer := value.producer()) is not None and producer.op_type == "Constant"
    ]
    weights = {name: recipes[name].evaluate() for name in read if name in recipes}
    weights |= {
        name: value.const_value.numpy()
        for name, value in read.items()
        if name not in recipes and value.is_initializer() and value.const_value is not None
    }
    given = [name for name in read if name in values[0] and name not in weights.keys() | computed]
    inputs = {**weights, **{name: values[0][name] for name in given}}
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            [ir.to_proto(node) for node in dict.fromkeys([*constants, *piece])],
            "piece",
            [_value_info(name, array) for name, array in inputs.items()],
            [onnx.helper.make_empty_tensor_value_info(name) for name in outputs],
        ),
        opset_imports=[onnx.helper.make_opsetid(*item) for item in model.opset_imports.items()],
        ir_version=10,
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    outputs = [name for name in outputs if name in computed]
    for held in values:
        feed = weights | {name: held[name] for name in given}
        if outputs:
            held.update(run(session, outputs, feed))


def _value_info(name: str, array: npt.NDArray[Any]) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, None)
