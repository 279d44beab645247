"""Weights of eight bits, one scale for each output channel, for products of whole numbers.

Activations have one scale a tensor: uint8 with a zero point, found at run time (dynamic), or
symmetric int8 with a scale found by calibration (static).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from export.quantisation.blocks import floats_from_array, rows_of
from export.quantisation.products import Product, declare, replace
from export.weights import Recipe, Weight

MOST = 127
"""The greatest whole number: -128 is not used, so that 0 is the middle."""


_made: dict[Weight, npt.NDArray[np.float32]] = {}
"""Scales of the matrix whose numbers were made last: so it is read once."""


@dataclass(frozen=True, kw_only=True)
class ChannelScales(Recipe):
    """The scale of every output channel of a matrix `[out, in]`: float32 `[out]`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """See above."""
        return self.source.shape[:1]

    @property
    def in_place(self) -> None:
        """Never: these are no bytes of the checkpoint."""

    def pieces(self) -> Iterator[npt.NDArray[Any]]:
        """All at once: they are small."""
        yield self.evaluate()

    def evaluate(self) -> npt.NDArray[Any]:
        """As they were made with the weights, or made now."""
        if self.source not in _made:
            numbers_from_matrix(self.source)
        return _made[self.source]


@dataclass(frozen=True, kw_only=True)
class ChannelNumbers(ChannelScales):
    """The weights, turned: int8 `[in, out]`, as ONNX multiplies by them."""

    @property
    def shape(self) -> tuple[int, ...]:
        """See above."""
        rows, columns = self.source.shape
        return columns, rows

    @property
    def nbytes(self) -> int:
        """Bytes of the result: one a weight."""
        rows, columns = self.source.shape
        return rows * columns

    def evaluate(self) -> npt.NDArray[Any]:
        """All at once, as every piece of the matrix is a part of all rows."""
        return numbers_from_matrix(self.source)


def numbers_from_matrix(source: Weight) -> npt.NDArray[np.int8]:
    """See `ChannelNumbers`. The matrix is read in parts; what it makes is whole in memory."""
    rows, columns = source.shape
    turned, scales = np.empty((columns, rows), np.int8), np.empty(rows, np.float32)
    start = 0
    for part, numbers, scale in quantised_rows(source):
        end = start + len(part)
        turned[:, start:end] = numbers.to(torch.int8).T.numpy()
        scales[start:end] = scale.numpy()
        start = end
    _made.clear()
    _made[source] = scales
    return turned


def quantised_rows(
    source: Weight,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Some rows at a time, in float32: themselves, whole numbers, and the scale of each row.

    A row of zeros has the scale 1.
    """
    for part in rows_of(source):
        rows = floats_from_array(part)
        scales = rows.abs().amax(1) / MOST
        scales = torch.where(scales == 0, 1, scales)
        yield rows, (rows / scales[:, None]).round_().clamp_(-MOST, MOST), scales


Form = Callable[[ir.Value, ir.Value, ir.Value, ir.Value | None], list[ir.Node]]
"""Activations, numbers, scales and bias to the nodes of a product."""


def in_one_operator(
    values: ir.Value, numbers: ir.Value, scales: ir.Value, bias: ir.Value | None
) -> list[ir.Node]:
    """`com.microsoft.DynamicQuantizeMatMul`: what ONNX Runtime makes of `in_standard_operators`."""
    inputs = [values, numbers, scales, *([] if bias is None else [None, bias])]
    return [ir.node("DynamicQuantizeMatMul", inputs, domain="com.microsoft", version=1)]


def in_standard_operators(
    values: ir.Value, numbers: ir.Value, scales: ir.Value, bias: ir.Value | None
) -> list[ir.Node]:
    """ONNX's own operators alone."""
    rounded = ir.node("DynamicQuantizeLinear", [values], num_outputs=3)
    whole, scale, zero = rounded.outputs
    product = ir.node("MatMulInteger", [whole, numbers, zero])
    floats = ir.node("Cast", product.outputs, {"to": ir.DataType.FLOAT.value})
    scale_of_both = ir.node("Mul", [scale, scales])
    scaled = ir.node("Mul", [floats.outputs[0], scale_of_both.outputs[0]])
    nodes = [rounded, product, floats, scale_of_both, scaled]
    return nodes if bias is None else [*nodes, ir.node("Add", [scaled.outputs[0], bias])]


FORMS: Mapping[str, Form] = {
    "one_operator": in_one_operator,
    "standard_operators": in_standard_operators,
}
"""How a product with dynamic activations is written."""

FORM = "one_operator"
"""The row that builds use."""


def static_form(model: ir.Model, name: str, scale: float) -> Form:
    """`QuantizeLinear` and `DequantizeLinear` around both factors (Q/DQ), with a constant scale.

    TensorRT and ONNX Runtime both read the three as one product of whole numbers.

    Args:
        model: gets the scale, and a zero point that says int8.
        name: of the weight.
        scale: of the activations.
    """

    def constant(suffix: str, value: npt.NDArray[Any]) -> ir.Value:
        made = ir.Value(name=f"{name}.{suffix}", const_value=ir.tensor(value))
        made.shape, made.type = ir.Shape([]), ir.TensorType(ir.DataType.from_numpy(value.dtype))
        return model.graph.initializers.setdefault(f"{name}.{suffix}", made)

    around = [
        constant("input_scale", np.array(scale, np.float32)),
        constant("input_zero", np.array(0, np.int8)),
    ]

    def form(
        values: ir.Value, numbers: ir.Value, scales: ir.Value, bias: ir.Value | None
    ) -> list[ir.Node]:
        rounded = ir.node("QuantizeLinear", [values, *around])
        floats = ir.node("DequantizeLinear", [rounded.outputs[0], *around])
        weights = ir.node("DequantizeLinear", [numbers, scales], {"axis": 1})
        product = ir.node("MatMul", [floats.outputs[0], weights.outputs[0]])
        nodes = [rounded, floats, weights, product]
        return nodes if bias is None else [*nodes, ir.node("Add", [product.outputs[0], bias])]

    return form


def quantise_product(
    model: ir.Model, product: Product, scale: float | None = None
) -> dict[str, Recipe]:
    """Puts a product of whole numbers in the place of this one; returns what it wants.

    Args:
        model: of the product.
        product: to be replaced.
        scale: of its input; `None` finds it at run time.
    """
    source, names = product.recipe.source, (f"{product.name}.int8", f"{product.name}.int8_scales")
    made: dict[str, Recipe] = {
        names[0]: ChannelNumbers(source=source, dtype="int8"),
        names[1]: ChannelScales(source=source, dtype="float32"),
    }
    numbers = declare(model, names[0], made[names[0]], ir.DataType.INT8)
    scales = declare(model, names[1], made[names[1]], ir.DataType.FLOAT)
    form = FORMS[FORM] if scale is None else static_form(model, product.name, scale)
    replace(model, product, form(product.input, numbers, scales, product.bias))
    return made
