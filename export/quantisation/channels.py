"""Weights of eight bits, one scale for each output channel, for products of whole numbers.

Activations are uint8 with one scale and zero point a tensor: found at run time (dynamic).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from export.quantisation.blocks import PIECE, floats_from_array
from export.quantisation.products import Product, declare, replace
from export.weights import Recipe, Weight, pieces_of

MOST = 127
"""The greatest whole number: -128 is not used, so that 0 is the middle."""


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
        """The greatest magnitude of each channel over `MOST`, all at once."""
        yield scales_from_matrix(self.source)


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

    def pieces(self) -> Iterator[npt.NDArray[Any]]:
        """Some input channels at a time."""
        matrix = self.source.read()
        factors = 1 / torch.from_numpy(scales_from_matrix(self.source))
        step = max(1, PIECE // len(matrix))
        for start in range(0, matrix.shape[1], step):
            part = floats_from_array(matrix[:, start : start + step])
            part = (part * factors[:, None]).round_().clamp_(-MOST, MOST)
            yield part.to(torch.int8).T.contiguous().numpy()


def scales_from_matrix(source: Weight) -> npt.NDArray[np.float32]:
    """The scale of every row of a matrix, read in parts. A row of zeros has the scale 1."""
    parts = [floats_from_array(piece).abs().amax(1) / MOST for piece in pieces_of(source)]
    scales = torch.cat(parts)
    made: npt.NDArray[np.float32] = torch.where(scales == 0, 1, scales).numpy()
    return made


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


def quantise_product(model: ir.Model, product: Product) -> dict[str, Recipe]:
    """Puts a product of whole numbers in the place of this one; returns what it wants."""
    source, names = product.recipe.source, (f"{product.name}.int8", f"{product.name}.int8_scales")
    made: dict[str, Recipe] = {
        names[0]: ChannelNumbers(source=source, dtype="int8"),
        names[1]: ChannelScales(source=source, dtype="float32"),
    }
    numbers = declare(model, names[0], made[names[0]], ir.DataType.INT8)
    scales = declare(model, names[1], made[names[1]], ir.DataType.FLOAT)
    replace(model, product, FORMS[FORM](product.input, numbers, scales, product.bias))
    return made
