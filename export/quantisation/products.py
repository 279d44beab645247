"""The products of a graph that a weight matrix takes part in, and their replacement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as passes

from iblip.export.weights.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Product:
    """`x @ weight.T`, and its bias where it has one.

    Attributes:
        node: `MatMul` of a transposed weight, or `Gemm`.
        weight: the initializer `[out, in]`.
        recipe: the weight's.
        bias: `[out]`, or `None`.
        last: the node that gives the result: the `Add` of a `MatMul`'s bias, or `node`.
    """

    node: ir.Node
    weight: ir.Value
    recipe: Recipe
    bias: ir.Value | None
    last: ir.Node

    @property
    def name(self) -> str:
        """Of the weight, in the graph and in the checkpoint."""
        assert self.weight.name is not None
        return self.weight.name

    @property
    def input(self) -> ir.Value:
        """The other factor, `[…, in]`."""
        value = self.node.inputs[0]
        assert value is not None
        return value


def products(model: ir.Model, recipes: Mapping[str, Recipe]) -> Iterator[Product]:
    """Every product with a matrix that has a recipe, in the graph's order."""
    for node in list(model.graph):
        weight = _weight(node)
        if weight is not None and weight.name is not None and weight.name in recipes:
            recipe = recipes[weight.name]
            bias, last = _bias(node, recipe.source.shape[0])
            yield Product(node=node, weight=weight, recipe=recipe, bias=bias, last=last)


def declare(model: ir.Model, name: str, recipe: Recipe, dtype: ir.DataType) -> ir.Value:
    """The initializer of this name, made with the recipe's shape where it is not there yet."""
    if name not in model.graph.initializers:
        value = ir.Value(name=name, shape=ir.Shape(recipe.shape), type=ir.TensorType(dtype))
        model.graph.initializers[name] = value
    return model.graph.initializers[name]


def replace(model: ir.Model, product: Product, nodes: Sequence[ir.Node]) -> None:
    """Puts these nodes in the place of a product; the last one's output takes over its name.

    Where it has a name, they are named by the product's module, as all nodes are
    (`export.graph.value_names`).
    """
    path = (product.node.name or "").rpartition("/")[0]
    for index, node in enumerate(nodes if path else ()):
        node.name = f"{path}/{node.op_type}_{index}" if index else f"{path}/{node.op_type}"
    old, new = product.last.outputs[0], nodes[-1].outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    ir.convenience.replace_nodes_and_values(
        model.graph, product.last, list({product.last, product.node}), nodes, [old], [new]
    )


def remove_unused(model: ir.Model, recipes: dict[str, Recipe]) -> None:
    """Drops what nothing is made of any more, from the graph and from `recipes`."""
    passes.RemoveUnusedNodesPass()(model)
    for name in list(recipes):
        if name not in model.graph.initializers:
            del recipes[name]


def _bias(node: ir.Node, width: int) -> tuple[ir.Value | None, ir.Node]:
    """`Product.bias` and `Product.last`; torch adds the bias of a linear layer over three axes."""
    if node.op_type == "Gemm":
        return (node.inputs[2] if len(node.inputs) > 2 else None), node
    users = list(node.outputs[0].uses())
    if len(users) == 1 and users[0].node.op_type == "Add" and not node.outputs[0].is_graph_output():
        add = users[0].node
        other = add.inputs[1 - users[0].idx]
        if other is not None and other.is_initializer() and _sizes(other) == (width,):
            return other, add
    return None, node


def _sizes(value: ir.Value) -> tuple[int | str | None, ...] | None:
    return None if value.shape is None else tuple(value.shape.numpy())


def _weight(node: ir.Node) -> ir.Value | None:
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


def _is_linear(gemm: ir.Node) -> bool:
    """Whether it is `x @ weight.T + bias` and nothing more."""
    given = {name: attribute.value for name, attribute in gemm.attributes.items()}
    return {"alpha": 1.0, "beta": 1.0, "transA": 0, **given} == {
        "alpha": 1.0,
        "beta": 1.0,
        "transA": 0,
        "transB": 1,
    }
