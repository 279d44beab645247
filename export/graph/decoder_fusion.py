"""Rewrites decoders for ONNX Runtime's CUDA provider, where each operator costs a launch.

A part of `export.graph.fusion`: residual norms, and attention with a bias. The operators of the
result run on a CPU as well, and are compared there in the tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 24
"""The first with `Attention` over a cache that `TensorScatter` fills."""

NORM, SKIP_NORM = "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"
BIAS = 10
"""Index of `attention_bias` among the inputs of GroupQueryAttention."""


def fuse_residual_norms(model: ir.Model) -> int:
    """Makes one operator of each addition to a residual stream and the RMSNorm of the sum.

    Returns:
        How many were made.
    """
    import onnx_ir as ir

    count = 0
    for norm in list(model.graph):
        if norm.op_type != NORM or norm.inputs[0] is None:
            continue
        total, weight = norm.inputs[0], norm.inputs[1]
        add = total.producer()
        norms = [user for user in total.consumers() if user.op_type == NORM]
        if add is None or add.op_type != "Add" or len(norms) > 1:
            continue
        if any(value is None or value.is_initializer() for value in add.inputs):
            continue
        epsilon = norm.attributes["epsilon"].as_float()
        fused = ir.node(
            SKIP_NORM,
            [*add.inputs, weight],
            {"epsilon": epsilon},
            num_outputs=4,  # normalised, mean and its inverse (for training), the sum
            domain="com.microsoft",
            version=1,
            name=norm.name,
        )
        normed, mean, inverse, summed = fused.outputs
        mean.name = inverse.name = ""
        normed.type, normed.shape = norm.outputs[0].type, norm.outputs[0].shape
        ir.convenience.replace_nodes_and_values(
            model.graph, add, [add, norm], [fused], [norm.outputs[0], total], [normed, summed]
        )
        count += 1
    return count


def fuse_biased_attention(model: ir.Model) -> int:
    """Replaces attention with a bias: GroupQueryAttention has no fused kernel for it.

    It writes the new key and value with `TensorScatter`, and attends with `Attention` to the whole
    slot, each head as a batch of its own: so no tensor is transposed. What is not to be seen must
    have the lowest bias. There must be one new position a row, and a bias of the slot's capacity.

    Returns:
        How many were replaced.
    """
    import onnx_ir as ir

    found = [node for node in model.graph if _has_bias(node)]
    shared: dict[ir.Value, ir.Value] = {}
    for node in found:
        nodes, outputs = _attention(node, shared)
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], nodes, node.outputs, outputs
        )
    if found:
        model.graph.opset_imports[""] = OPSET
    return len(found)


def _has_bias(node: ir.Node) -> bool:
    has = node.op_type == "GroupQueryAttention" and len(node.inputs) > BIAS
    return has and node.inputs[BIAS] is not None


def _attention(
    node: ir.Node, shared: dict[ir.Value, ir.Value]
) -> tuple[list[ir.Node], list[ir.Value]]:
    """Makes the nodes in the place of `node`, and the values in the place of its outputs.

    Args:
        node: a GroupQueryAttention with a bias, whose heads of queries and keys are as many.
        shared: what other nodes have already made of a value that they have in common.
    """
    import onnx_ir as ir

    nodes: list[ir.Node] = []

    def make(
        kind: str, inputs: list[ir.Value | None], outputs: int = 1, **attributes: float
    ) -> ir.Value:
        made = ir.node(kind, inputs, attributes, num_outputs=outputs)
        nodes.append(made)
        return made.outputs[0]

    def reshape(value: ir.Value | None, *shape: int) -> ir.Value:
        constant = ir.node("Constant", [], {"value_ints": list(shape)})
        nodes.append(constant)
        return make("Reshape", [value, constant.outputs[0]])

    def once(value: ir.Value, made: ir.Value) -> ir.Value:
        shared[value] = made
        return made

    query, key, value, past_key, past_value, last = node.inputs[:6]
    bias = node.inputs[BIAS]
    assert past_key is not None
    assert past_key.shape is not None
    assert last is not None
    assert bias is not None
    heads, head_dim = int(past_key.shape[1]), int(past_key.shape[3])  # type: ignore[arg-type]
    index = shared.get(last) or once(last, make("Cast", [last], to=ir.DataType.INT64.value))
    # [batch, heads, 1, capacity] to [batch * heads, 1, 1, capacity]
    mask = shared.get(bias) or once(bias, reshape(make("Flatten", [bias], axis=2), 0, 1, 1, -1))
    present, seen = [], []
    for new, past in ((key, past_key), (value, past_value)):
        update = reshape(new, 0, heads, 1, head_dim)  # from [batch, 1, heads * head_dim]
        present.append(make("TensorScatter", [past, update, index], axis=2))
        # [batch, heads, capacity, head_dim] to [batch * heads, capacity, head_dim]
        seen.append(reshape(make("Flatten", [present[-1]], axis=2), 0, -1, head_dim))
    single = reshape(query, -1, 1, head_dim)  # [batch * heads, 1, head_dim]
    mixed = make(
        "Attention",
        [single, *seen, mask],
        q_num_heads=1,
        kv_num_heads=1,
        scale=node.attributes["scale"].as_float(),
    )
    return nodes, [reshape(mixed, -1, 1, heads * head_dim), *present]
