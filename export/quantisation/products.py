"""The products of a graph that a weight matrix takes part in, and their replacement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as passes

from export.weights import Recipe


@dataclass(frozen=True, kw_only=True)
class Product:
    """`x @ weight.T`, and its bias where it is a `Gemm`.

    Attributes:
        node: `MatMul` of a transposed weight, or `Gemm`.
        weight: the initializer `[out, in]`.
        recipe: the weight's.
    """

    node: ir.Node
    weight: ir.Value
    recipe: Recipe

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

    @property
    def bias(self) -> ir.Value | None:
        """`[out]`, of a `Gemm`."""
        return self.node.inputs[2] if len(self.node.inputs) > 2 else None


def products(model: ir.Model, recipes: Mapping[str, Recipe]) -> Iterator[Product]:
    """Every product with a matrix that has a recipe, in the graph's order."""
    for node in list(model.graph):
        weight = _weight(node)
        if weight is not None and weight.name is not None and weight.name in recipes:
            yield Product(node=node, weight=weight, recipe=recipes[weight.name])


def declare(model: ir.Model, name: str, recipe: Recipe, dtype: ir.DataType) -> ir.Value:
    """The initializer of this name, made with the recipe's shape where it is not there yet."""
    if name not in model.graph.initializers:
        value = ir.Value(name=name, shape=ir.Shape(recipe.shape), type=ir.TensorType(dtype))
        model.graph.initializers[name] = value
    return model.graph.initializers[name]


def replace(model: ir.Model, product: Product, nodes: Sequence[ir.Node]) -> None:
    """Puts these nodes in the place of a product; the last one's output takes over its name."""
    old, new = product.node.outputs[0], nodes[-1].outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    ir.convenience.replace_nodes_and_values(
        model.graph, product.node, [product.node], nodes, [old], [new]
    )


def remove_unused(model: ir.Model, recipes: dict[str, Recipe]) -> None:
    """Drops what nothing is made of any more, from the graph and from `recipes`."""
    passes.RemoveUnusedNodesPass()(model)
    for name in list(recipes):
        if name not in model.graph.initializers:
            del recipes[name]


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
