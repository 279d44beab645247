"""Finds the multiplications by a weight matrix in a graph, and replaces them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as passes

from iblip.export.weights.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class MatMul:
    """`x @ weight.T`, with its bias if it has one.

    Attributes:
        node: a `MatMul` by a transposed weight, or a `Gemm`.
        weight: the initializer, `[out, in]`.
        recipe: how the weight is made.
        cast: dtype that the graph casts the weight to before it multiplies by it, or `None`.
        bias: `[out]`, or `None`.
        last: the node that gives the result: the `Add` of the bias, or `node`.
    """

    node: ir.Node
    weight: ir.Value
    recipe: Recipe
    cast: ir.DataType | None
    bias: ir.Value | None
    last: ir.Node

    @property
    def name(self) -> str:
        """Name of the weight, in the graph and in the checkpoint."""
        assert self.weight.name is not None
        return self.weight.name

    @property
    def input(self) -> ir.Value:
        """The activations `x`, `[…, in]`."""
        value = self.node.inputs[0]
        assert value is not None
        return value


def find_matmuls(model: ir.Model, recipes: Mapping[str, Recipe]) -> Iterator[MatMul]:
    """Yields every multiplication by a matrix that has a recipe, in the graph's order."""
    for node in list(model.graph):
        right = _find_weight(node)
        weight, cast = _without_cast(right)
        if weight is not None and weight.name is not None and weight.name in recipes:
            recipe = recipes[weight.name]
            bias, last = _find_bias(node, recipe.source.shape[0])
            yield MatMul(node=node, weight=weight, recipe=recipe, cast=cast, bias=bias, last=last)


def declare(model: ir.Model, name: str, recipe: Recipe, dtype: ir.DataType) -> ir.Value:
    """Returns the initializer of this name; adds one of the recipe's shape if there is none."""
    if name not in model.graph.initializers:
        value = ir.Value(name=name, shape=ir.Shape(recipe.shape), type=ir.TensorType(dtype))
        model.graph.initializers[name] = value
    return model.graph.initializers[name]


def replace(model: ir.Model, matmul: MatMul, nodes: Sequence[ir.Node]) -> None:
    """Replaces a matmul with these nodes; the last one's output takes over its name.

    They are named after the matmul's module, as all nodes are (`export.graph.value_names`), if it
    has one.
    """
    path = (matmul.node.name or "").rpartition("/")[0]
    for index, node in enumerate(nodes if path else ()):
        node.name = f"{path}/{node.op_type}_{index}" if index else f"{path}/{node.op_type}"
    old, new = matmul.last.outputs[0], nodes[-1].outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    ir.convenience.replace_nodes_and_values(
        model.graph, matmul.last, list({matmul.last, matmul.node}), nodes, [old], [new]
    )


def remove_unused(model: ir.Model, recipes: dict[str, Recipe]) -> None:
    """Drops nodes and initializers that nothing reads any more, and their `recipes`."""
    passes.RemoveUnusedNodesPass()(model)
    for name in list(recipes):
        if name not in model.graph.initializers:
            del recipes[name]


def _find_bias(node: ir.Node, width: int) -> tuple[ir.Value | None, ir.Node]:
    """`MatMul.bias` and `MatMul.last`; torch adds the bias of a linear layer over three axes."""
    if node.op_type == "Gemm":
        return (node.inputs[2] if len(node.inputs) > 2 else None), node
    users = list(node.outputs[0].uses())
    if len(users) == 1 and users[0].node.op_type == "Add" and not node.outputs[0].is_graph_output():
        add = users[0].node
        other = add.inputs[1 - users[0].idx]
        if other is not None and other.is_initializer() and _shape_of(other) == (width,):
            return other, add
    return None, node


def _shape_of(value: ir.Value) -> tuple[int | str | None, ...] | None:
    return None if value.shape is None else tuple(value.shape.numpy())


def _find_weight(node: ir.Node) -> ir.Value | None:
    """The matrix `[out, in]` whose transpose this node multiplies by, if it is such a node.

    torch makes a `Gemm` of a linear layer over two axes, as OPT has them.
    """
    if node.op_type == "Gemm" and _is_linear(node):
        return node.inputs[1]
    if node.op_type != "MatMul":
        return None
    right = node.inputs[1]
    turned = None if right is None else right.producer()
    if turned is None or turned.op_type != "Transpose":
        return None
    return turned.inputs[0]


def _without_cast(matrix: ir.Value | None) -> tuple[ir.Value | None, ir.DataType | None]:
    """`MatMul.weight` and `MatMul.cast`: T5's `wo` is float32 in a graph of 16 bits."""
    node = None if matrix is None else matrix.producer()
    if node is None or node.op_type != "Cast":
        return matrix, None
    return node.inputs[0], ir.DataType(node.attributes["to"].as_int())


def _is_linear(gemm: ir.Node) -> bool:
    """Whether it is `x @ weight.T + bias` and nothing more."""
    given = {name: attribute.value for name, attribute in gemm.attributes.items()}
    return {"alpha": 1.0, "beta": 1.0, "transA": 0, **given} == {
        "alpha": 1.0,
        "beta": 1.0,
        "transA": 0,
        "transB": 1,
    }
