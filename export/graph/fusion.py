"""Rewrites graphs for ONNX Runtime's CUDA provider: one operator where a file has several.

A graph keeps to operators that TensorRT reads as well, and to what a CPU computes fastest. Beside
it lies a second one, of the same weights, which has instead:

- `FusedMatMul` by a weight `[out, in]` as it lies, where the first transposes it: ONNX Runtime
  would do that on the CPU while it opens the graph, which takes longer than all else;
- ONNX's `Attention`, for which the provider has flash attention. Its kernels compute scores and
  softmax in float32, whatever they read;
- what `export.graph.decoder_fusion` makes of decoders;
- LayerNorm in the dtype of its input, with sums in float32, and `SkipLayerNormalization` for it and
  the additions before it. Scale and shift are rounded to that dtype.

What it computes is otherwise the same, and can be run on a CPU. It is written with the first, so
that whoever opens it needs nothing but ONNX Runtime. For a CPU the first is the better one: its
products of one row take a quarter longer by weights that lie transposed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from iblip.export.graph.decoder_fusion import fuse_biased_attention, fuse_residual_norms

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

OPSET = 23
"""The first with `Attention`. What graphs have of older operators is the same in it."""

MICROSOFT = "com.microsoft"

SKIP_BIAS = 4
"""Index of `bias` among the inputs of SkipLayerNormalization, behind its optional shift."""


def fused_path(path: Path) -> Path:
    """Returns where the rewritten graph lies of the graph at `path`, if it has one."""
    return path.with_suffix(".cuda.onnx")


def fused_from_proto(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """Returns a graph after `fuse`; `None` if nothing of it is replaced.

    Args:
        proto: the graph, which is not changed; its weights stay where they are.
    """
    import onnx_ir as ir

    model = ir.from_proto(proto)
    return ir.to_proto(model) if fuse(model) else None


def fuse(model: ir.Model) -> bool:
    """Replaces what the CUDA provider has one operator for; changes `model` in place.

    Returns:
        Whether there was anything.
    """
    import onnx_ir.passes.common as passes

    graph = model.graph
    before = [node.op_type for node in graph]
    multiply_by_weights_as_they_lie(graph)
    masks: dict[tuple[Any, ...], ir.Value] = {}
    for node in _all(graph, "Softmax"):
        if (attention := _find_attention(node)) is not None:
            _fuse_attention(graph, attention, masks)
    for node in _all(graph, "LayerNormalization"):
        _fuse_layer_norm(graph, node)
    fuse_residual_norms(model)
    fuse_biased_attention(model)
    passes.RemoveUnusedNodesPass()(model)
    graph.opset_imports.update({"": max(OPSET, graph.opset_imports[""]), MICROSOFT: 1})
    return [node.op_type for node in graph] != before


def multiply_by_weights_as_they_lie(graph: ir.Graph) -> None:
    """Replaces `MatMul` by a transposed weight with `FusedMatMul` by the weight."""
    for node in _all(graph, "MatMul"):
        turned = _producer(node.inputs[1], "Transpose")
        weight = None if turned is None else turned.inputs[0]
        if weight is not None and weight.is_initializer() and len(_dims(weight)) == 2:
            _replace(graph, node, "FusedMatMul", [node.inputs[0], weight], {"transB": 1})


@dataclass(frozen=True, kw_only=True)
class Attention:
    """The nodes from queries, keys and values to what is mixed of them.

    Attributes:
        queries, keys, values: `[batch, length, heads * head_dim]`; all three are one value
            `[batch, length, 3 * heads * head_dim]` where they are `packed`.
        packed: whether they are.
        heads: their number.
        scale: of the scores.
        mask: added to the scores, float32 `[batch, 1, 1, keys]`; or `None`.
        last: the node with the result, `[batch, length, heads * head_dim]`.
    """

    queries: ir.Value
    keys: ir.Value
    values: ir.Value
    packed: bool
    heads: int
    scale: float
    mask: ir.Value | None
    last: ir.Node


def _find_attention(softmax: ir.Node) -> Attention | None:
    """Returns the attention around a softmax, if it is as `export.components.attention` has it."""
    mixed = _only_user(_only_user(softmax, "Cast") or softmax, "MatMul")
    turned = None if mixed is None else _only_user(mixed, "Transpose")
    last = None if turned is None else _only_user(turned, "Reshape")
    scores, mask, scale = softmax.inputs[0], None, 1.0
    if (add := _producer(scores, "Add")) is not None:
        scores, mask = add.inputs
    if (cast := _producer(scores, "Cast")) is not None:
        scores = cast.inputs[0]
    if (mul := _producer(scores, "Mul")) is not None:
        scores, factor = mul.inputs[0], _constant(mul.inputs[1])
        if factor is None or factor.size != 1:
            return None
        scale = float(factor.reshape(())[()])
    product = _producer(scores, "MatMul")
    turned_keys = None if product is None else _producer(product.inputs[1], "Transpose")
    if last is None or mixed is None or product is None or turned_keys is None:
        return None
    if mask is not None and (len(_dims(mask)) != 4 or _dims(mask)[1:3] != [1, 1]):
        return None
    heads = [_heads(v) for v in (product.inputs[0], turned_keys.inputs[0], mixed.inputs[1])]
    if any(head is None for head in heads):
        return None
    (queries, _, count), (keys, _, _), (values, _, _) = [head for head in heads if head]
    places = [place for _, place, _ in (head for head in heads if head)]
    if places not in ([None] * 3, [0, 1, 2]) or queries.dtype is None:
        return None
    return Attention(
        queries=queries,
        keys=keys,
        values=values,
        packed=places[0] is not None,
        heads=count,
        scale=scale,
        mask=mask,
        last=last,
    )


def _heads(value: ir.Value | None) -> tuple[ir.Value, int | None, int] | None:
    """Returns what `[batch, heads, length, head_dim]` are a view of, and the number of heads.

    Between them is the place of these heads, if they are one of three that are packed.
    """
    gather, place = _producer(value, "Gather"), None
    if gather is not None:
        index, value = _constant(gather.inputs[1]), gather.inputs[0]
        place = None if index is None or index.size != 1 else int(index.reshape(())[()])
    turned = _producer(value, "Transpose")
    rows = None if turned is None else _producer(turned.inputs[0], "Reshape")
    if turned is None or rows is None or (gather is not None and place is None):
        return None
    perm = list(turned.attributes["perm"].as_ints())
    dims = _dims(rows.outputs[0])
    if perm != ([0, 2, 1, 3] if place is None else [2, 0, 3, 1, 4]) or len(dims) != len(perm):
        return None
    count, whole = dims[-2], rows.inputs[0]
    if whole is None or not isinstance(count, int) or len(_dims(whole)) != 3:
        return None
    return whole, place, count


def _fuse_attention(
    graph: ir.Graph, attention: Attention, masks: dict[tuple[Any, ...], ir.Value]
) -> None:
    last, inputs = attention.last, [attention.queries, attention.keys, attention.values]
    if attention.packed:
        inputs = _split(graph, last, attention.queries, 3)
    else:
        inputs = _pack(graph, last, inputs)
    if attention.mask is not None:
        inputs = [*inputs, _mask(graph, last, attention, masks)]
    attributes = {
        "q_num_heads": attention.heads,
        "kv_num_heads": attention.heads,
        "scale": attention.scale,
    }
    _replace(graph, last, "Attention", inputs, attributes, domain="")


def _split(graph: ir.Graph, before: ir.Node, value: ir.Value, parts: int) -> list[ir.Value]:
    import onnx_ir as ir

    attributes = {"axis": -1, "num_outputs": parts}
    node = ir.node("Split", [value], attributes, num_outputs=parts)
    graph.insert_before(before, node)
    for output in node.outputs:
        output.type = value.type
    return list(node.outputs)


def _pack(graph: ir.Graph, before: ir.Node, inputs: list[ir.Value]) -> list[ir.Value]:
    """Computes queries, keys and values of one input, or at least keys and values, as one product.

    Their weights are joined when the graph is opened, so this is for layers that are small.
    """
    linears = [_find_linear(value) for value in inputs]
    for start in (0, 1):
        found = [linear for linear in linears[start:] if linear is not None]
        same = {(linear.input, *map(str, _dims(linear.weight))) for linear in found}
        if len(found) == 3 - start and len(same) == 1:
            weight = _insert(graph, before, "Concat", [x.weight for x in found], {"axis": 0})
            bias = _insert(graph, before, "Concat", [x.bias for x in found], {"axis": 0})
            product = _insert(
                graph, before, "FusedMatMul", [found[0].input, weight], {"transB": 1}, MICROSOFT
            )
            sums = _insert(graph, before, "Add", [product, bias])
            return [*inputs[:start], *_split(graph, before, sums, 3 - start)]
    return inputs


@dataclass(frozen=True, kw_only=True)
class Linear:
    """`input @ weight.T + bias`."""

    input: ir.Value
    weight: ir.Value
    bias: ir.Value


def _find_linear(value: ir.Value) -> Linear | None:
    add = _producer(value, "Add")
    product, bias = (None, None) if add is None else _biased(add)
    matmul = _producer(product, "FusedMatMul")
    if matmul is None or bias is None:
        return None
    source, weight = matmul.inputs
    assert source is not None
    assert weight is not None
    return Linear(input=source, weight=weight, bias=bias)


def _mask(
    graph: ir.Graph,
    before: ir.Node,
    attention: Attention,
    masks: dict[tuple[Any, ...], ir.Value],
) -> ir.Value:
    """Returns the mask as the provider takes it: the dtype of queries, finite, a row a query.

    It is computed once for all layers.
    """
    import onnx_ir as ir

    mask, queries = attention.mask, attention.queries
    dtype = queries.dtype
    assert mask is not None
    assert dtype is not None
    key = (mask, dtype, str(_dims(queries)[1]))
    if key not in masks:
        low = np.finfo if dtype != ir.DataType.BFLOAT16 else ml_dtypes.finfo
        lowest = np.array(low(dtype.numpy()).min, np.float32)
        finite = _insert(graph, before, "Max", [mask, _constant_node(graph, before, lowest)])
        narrow = _insert(graph, before, "Cast", [finite], {"to": dtype.value})
        rows = _insert(graph, before, "Shape", [queries], {"start": 1, "end": 2})
        one, two = (_constant_node(graph, before, np.ones(count, np.int64)) for count in (1, 2))
        shape = _insert(graph, before, "Concat", [two, rows, one], {"axis": 0})
        masks[key] = _insert(graph, before, "Expand", [narrow, shape])
    return masks[key]


def _fuse_layer_norm(graph: ir.Graph, norm: ir.Node) -> None:
    """Has a LayerNorm between two casts compute in the dtype around it, and add what it is of."""
    source, *given = norm.inputs  # scale, and shift where there is one
    cast, result = _producer(source, "Cast"), norm.outputs[0]
    users = [user.node for user in result.uses()]
    if cast is not None:
        kinds = {_target(user) for user in users}
        source = cast.inputs[0]
        if source is None or source.dtype is None or kinds != {source.dtype.value}:
            return
    values = [value for value in given if value is not None]
    if source is None or source.dtype is None or not values:
        return
    ends = [user.outputs[0] for user in users] if cast is not None else [result]
    dtype = source.dtype
    parameters = [_parameter(graph, value, dtype) for value in values]
    epsilon = norm.attributes["epsilon"].as_float()
    add = _producer(source, "Add")
    if add is not None and _is_residual(add):
        fused = _skip(graph, add, parameters, epsilon)
    else:
        attributes = {"axis": -1, "epsilon": epsilon, "stash_type": 1}
        fused = _insert(graph, norm, "LayerNormalization", [source, *parameters], attributes)
    fused.dtype, fused.shape = dtype, result.shape
    for end in ends:
        _take_over(end, fused)


def _skip(
    graph: ir.Graph, add: ir.Node, parameters: Sequence[ir.Value], epsilon: float
) -> ir.Value:
    """Adds, and normalises the sum; returns the result, and has the sum take over `add`'s."""
    import onnx_ir as ir

    total = add.outputs[0]
    (left, right), bias = _added(graph, add)
    inputs: list[ir.Value | None] = [left, right, *parameters]
    if bias is not None:
        inputs += [None] * (SKIP_BIAS - len(inputs)) + [bias]
    node = ir.node(
        "SkipLayerNormalization", inputs, {"epsilon": epsilon}, domain=MICROSOFT, num_outputs=4
    )
    graph.insert_before(add, node)
    result, *unused, sums = node.outputs
    for value in unused:
        value.name = ""
    sums.type, sums.shape = total.type, total.shape
    _take_over(total, sums)
    return result


def _added(graph: ir.Graph, add: ir.Node) -> tuple[tuple[ir.Value, ir.Value], ir.Value | None]:
    """Returns the two values that `add` adds, and the bias that was added to one of them."""
    for index, value in enumerate(add.inputs):
        other = add.inputs[1 - index]
        cast = _producer(value, "Cast")
        inner = _producer(value if cast is None else cast.inputs[0], "Add")
        if value is None or other is None or inner is None or len(inner.outputs[0].uses()) != 1:
            continue
        product, bias = _biased(inner)
        if product is None or bias is None or len(value.uses()) != 1:
            continue
        dtype = add.outputs[0].dtype
        assert dtype is not None
        if cast is not None:
            product = _insert(graph, add, "Cast", [product], {"to": dtype.value})
        return (product, other), _parameter(graph, bias, dtype)
    left, right = add.inputs
    assert left is not None
    assert right is not None
    return (left, right), None


def _is_residual(add: ir.Node) -> bool:
    """Whether it adds two values of one shape of three axes, and is not a graph's result."""
    dims = [_dims(value) for value in add.inputs if value is not None]
    return len(dims[0]) == 3 and dims[0] == dims[1] and not add.outputs[0].is_graph_output()


def _biased(add: ir.Node) -> tuple[ir.Value | None, ir.Value | None]:
    """Returns what a bias is added to, and the bias, if it is a weight of one axis."""
    for index, value in enumerate(add.inputs):
        if value is not None and value.is_initializer() and len(_dims(value)) == 1:
            return add.inputs[1 - index], value
    return None, None


def _parameter(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Returns a weight in `dtype`; ONNX Runtime casts it when it opens the graph."""
    if value.dtype == dtype:
        return value
    return _insert(graph, graph[0], "Cast", [value], {"to": dtype.value})


def _take_over(old: ir.Value, new: ir.Value) -> None:
    import onnx_ir as ir

    node = new.producer()
    assert node is not None
    node.name = new.name = old.name
    old.name = None
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def _replace(
    graph: ir.Graph,
    node: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: dict[str, Any],
    domain: str = MICROSOFT,
) -> None:
    old = node.outputs[0]
    new = _insert(graph, node, op_type, inputs, attributes, domain)
    new.type, new.shape = old.type, old.shape
    _take_over(old, new)


def _insert(
    graph: ir.Graph,
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: dict[str, Any] | None = None,
    domain: str = "",
) -> ir.Value:
    import onnx_ir as ir

    node = ir.node(op_type, inputs, attributes or {}, domain=domain)
    graph.insert_before(before, node)
    output, first = node.outputs[0], inputs[0] if inputs else None
    if op_type == "Cast":
        output.dtype = ir.DataType(node.attributes["to"].as_int())
    elif op_type not in ("Shape", "Constant") and first is not None and first.dtype is not None:
        output.dtype = first.dtype
    return output


def _constant_node(graph: ir.Graph, before: ir.Node, value: Any) -> ir.Value:
    import onnx_ir as ir

    return _insert(graph, before, "Constant", [], {"value": ir.tensor(value)})


def _all(graph: ir.Graph, op_type: str) -> Iterator[ir.Node]:
    return iter([node for node in graph if node.op_type == op_type and node.domain == ""])


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def _only_user(node: ir.Node, op_type: str) -> ir.Node | None:
    users = [user.node for user in node.outputs[0].uses()]
    return users[0] if len(users) == 1 and users[0].op_type == op_type else None


def _target(node: ir.Node) -> int | None:
    """The dtype that a `Cast` casts to; of other nodes, `None`."""
    return node.attributes["to"].as_int() if node.op_type == "Cast" else None


def _constant(value: ir.Value | None) -> Any:
    """Returns the array of a `Constant`; `None` of anything else."""
    node = _producer(value, "Constant")
    if node is None:
        return None
    if "value_ints" in node.attributes:
        return np.array(node.attributes["value_ints"].as_ints(), np.int64)
    return node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else None


def _dims(value: ir.Value | None) -> list[int | str]:
    """Returns the axes of a value; none, if they are not known."""
    if value is None or value.shape is None:
        return []
    return [axis if isinstance(axis, int) else str(axis) for axis in value.shape]
