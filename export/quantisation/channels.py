"""Weights of eight bits, one scale for each output channel, for products of such numbers.

Activations have one scale a tensor: uint8 with a zero point, found at run time (dynamic), or
symmetric, int8 or e4m3 as the weights are, with a scale found by calibration (static).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from iblip.export.graph.bfloat16 import MOVING
from iblip.export.quantisation.blocks import floats_from_array, rows_of
from iblip.export.quantisation.formats import FORMATS, Format, array_of_scales, as_scales
from iblip.export.quantisation.products import Product, declare, replace
from iblip.export.weights.recipe import Recipe
from iblip.export.weights.weight import Weight


@dataclass(frozen=True, kw_only=True)
class Channels:
    """How a matrix `[out, in]` becomes numbers of eight bits.

    Attributes:
        source: the matrix.
        format: of the numbers, a key of `export.quantisation.formats.FORMATS`.
        dtype: of the scales: what the graph computes in around the product.
    """

    source: Weight
    format: str
    dtype: str

    @property
    def numbers(self) -> Format:
        """See `format`."""
        return FORMATS[self.format]

    def rows(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Some rows at a time, in float32: themselves, their numbers, and the scale of each.

        A row of zeros has the scale 1.
        """
        for part in rows_of(self.source):
            rows = floats_from_array(part)
            scales = as_scales(rows.abs().amax(1) / self.numbers.most, self.dtype)
            yield rows, self.numbers.rounded(rows, scales[:, None]), scales


_made: dict[Channels, npt.NDArray[Any]] = {}
"""Scales of the matrix whose numbers were made last: so it is read once."""


@dataclass(frozen=True, kw_only=True)
class ChannelScales(Recipe):
    """The scale of every output channel of a matrix `[out, in]`, in `channels.dtype`: `[out]`."""

    channels: Channels

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
        if self.channels not in _made:
            numbers_from_matrix(self.channels)
        return _made[self.channels]


@dataclass(frozen=True, kw_only=True)
class ChannelNumbers(ChannelScales):
    """The weights, turned: `[in, out]`, as ONNX multiplies by them."""

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
        return numbers_from_matrix(self.channels)


def numbers_from_matrix(channels: Channels) -> npt.NDArray[Any]:
    """See `ChannelNumbers`. The matrix is read in parts; what it makes is whole in memory."""
    rows, columns = channels.source.shape
    turned = np.empty((columns, rows), channels.numbers.numpy)
    scales, start = torch.empty(rows), 0
    for part, numbers, scale in channels.rows():
        end = start + len(part)
        turned[:, start:end] = channels.numbers.stored(numbers).T
        scales[start:end] = scale
        start = end
    _made.clear()
    _made[channels] = array_of_scales(scales, channels.dtype)
    return turned


def recipes_of(source: Weight, format_: str, dtype: str) -> tuple[ChannelNumbers, ChannelScales]:
    """What a matrix becomes; the arguments are those of `Channels`."""
    channels = Channels(source=source, format=format_, dtype=dtype)
    return (
        ChannelNumbers(source=source, dtype=channels.numbers.name, channels=channels),
        ChannelScales(source=source, dtype=dtype, channels=channels),
    )


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


def static_form(model: ir.Model, name: str, channels: Channels, scale: float) -> Form:
    """`QuantizeLinear` and `DequantizeLinear` around both factors (Q/DQ), with a constant scale.

    TensorRT reads the three as one product of eight bits, and so does ONNX Runtime where they are
    int8 and float32.

    Args:
        model: gets the scale, and a zero point that says what the numbers are.
        name: of the weight.
        channels: of the weight.
        scale: of the activations.
    """

    def constant(suffix: str, value: npt.NDArray[Any]) -> ir.Value:
        made = ir.Value(name=f"{name}.{suffix}", const_value=ir.tensor(value))
        made.shape, made.type = ir.Shape([]), ir.TensorType(ir.DataType.from_numpy(value.dtype))
        return model.graph.initializers.setdefault(f"{name}.{suffix}", made)

    kept = as_scales(torch.tensor(scale), channels.dtype)
    around = [
        constant("input_scale", array_of_scales(kept, channels.dtype)),
        constant("input_zero", np.zeros((), channels.numbers.numpy)),
    ]

    def form(
        values: ir.Value, numbers: ir.Value, scales: ir.Value, bias: ir.Value | None
    ) -> list[ir.Node]:
        before = _barrier(values) if channels.format == "e4m3" else []
        rounded = ir.node("QuantizeLinear", [before[0].outputs[0] if before else values, *around])
        floats = ir.node("DequantizeLinear", [rounded.outputs[0], *around])
        weights = ir.node("DequantizeLinear", [numbers, scales], {"axis": 1})
        product = ir.node("MatMul", [floats.outputs[0], weights.outputs[0]])
        nodes = [*before, rounded, floats, weights, product]
        return nodes if bias is None else [*nodes, ir.node("Add", [product.outputs[0], bias])]

    return form


def _barrier(values: ir.Value) -> list[ir.Node]:
    """The greatest of one value, itself, behind an operator that only moves values.

    ONNX Runtime moves `QuantizeLinear` to the other side of such a one, which need not take floats
    of eight bits (`Transpose` does not, up to opset 20), and then refuses the graph. TensorRT
    builds the same with it as without.
    """
    producer = values.producer()
    moves = producer is not None and producer.op_type in MOVING
    return [ir.node("Max", [values])] if moves else []


def quantise_product(
    model: ir.Model, product: Product, format_: str, scale: float | None = None
) -> dict[str, Recipe]:
    """Puts a product of numbers of eight bits in the place of this one; returns what it wants.

    What is not such a number stays in the dtype that the product has been traced in.

    Args:
        model: of the product.
        product: to be replaced.
        format_: a key of `export.quantisation.formats.FORMATS`.
        scale: of its input; `None` finds it at run time.
    """
    numbers, scales = recipes_of(product.recipe.source, format_, product.recipe.dtype)
    channels, name = numbers.channels, f"{product.name}.{numbers.dtype}"
    made: dict[str, Recipe] = {name: numbers, f"{name}_scales": scales}
    assert product.weight.dtype is not None
    inputs = (
        declare(model, name, numbers, channels.numbers.dtype),
        declare(model, f"{name}_scales", scales, product.weight.dtype),
    )
    form = FORMS[FORM] if scale is None else static_form(model, product.name, channels, scale)
    replace(model, product, form(product.input, *inputs, product.bias))
    return made
