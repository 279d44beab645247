"""Channel-wise quantisation: weights of eight bits, one scale for each output channel.

Activations are quantised too, with one scale a tensor: uint8 with a zero point, computed at run
time (dynamic); or symmetric, int8 or e4m3 as the weights are, with a scale from calibration
(static).
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
from iblip.export.quantisation.blockwise import floats_from_array, read_rows
from iblip.export.quantisation.formats import FORMATS, Format, array_of_scales, round_scales
from iblip.export.quantisation.matmuls import MatMul, declare, replace
from iblip.export.weights.recipe import Recipe
from iblip.export.weights.weight import Weight


@dataclass(frozen=True, kw_only=True)
class ChannelwiseMatrix:
    """A matrix `[out, in]`, and how it is quantised.

    Attributes:
        source: the matrix.
        format: a key of `export.quantisation.formats.FORMATS`.
        dtype: of the scales: what the graph computes in around the MatMul.
    """

    source: Weight
    format: str
    dtype: str

    @property
    def numbers(self) -> Format:
        """The row of `FORMATS` for `format`."""
        return FORMATS[self.format]

    def rows(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yields some rows at a time, their numbers, and the scale of each row; all float32.

        A row of zeros has the scale 1.
        """
        for part in read_rows(self.source):
            rows = floats_from_array(part)
            scales = round_scales(rows.abs().amax(1) / self.numbers.largest, self.dtype)
            yield rows, self.numbers.quantise(rows, scales[:, None]), scales


_latest: dict[ChannelwiseMatrix, npt.NDArray[Any]] = {}
"""Scales of the matrix that was quantised last, so that it is read once."""


@dataclass(frozen=True, kw_only=True)
class ChannelScales(Recipe):
    """The scale of every output channel: `[out]`, of `matrix.dtype`."""

    matrix: ChannelwiseMatrix

    @property
    def shape(self) -> tuple[int, ...]:
        """`(out,)`."""
        return self.source.shape[:1]

    @property
    def in_place(self) -> None:
        """Always `None`: the checkpoint does not hold these bytes."""

    def pieces(self) -> Iterator[npt.NDArray[Any]]:
        """Yields the whole initializer."""
        yield self.evaluate()

    def evaluate(self) -> npt.NDArray[Any]:
        """Returns the scales, which are at hand if the weights have just been written."""
        if self.matrix not in _latest:
            quantise_matrix(self.matrix)
        return _latest[self.matrix]


@dataclass(frozen=True, kw_only=True)
class ChannelWeights(ChannelScales):
    """The quantised weights, transposed to `[in, out]` as ONNX's operators read them."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`(in, out)`."""
        rows, columns = self.source.shape
        return columns, rows

    @property
    def nbytes(self) -> int:
        """Size in bytes: one a weight."""
        rows, columns = self.source.shape
        return rows * columns

    def evaluate(self) -> npt.NDArray[Any]:
        """Returns all weights: every piece of the source is a part of every row of the result."""
        return quantise_matrix(self.matrix)


def quantise_matrix(matrix: ChannelwiseMatrix) -> npt.NDArray[Any]:
    """Returns the values of `ChannelWeights`, whole in memory; the source is read in parts."""
    rows, columns = matrix.source.shape
    transposed = np.empty((columns, rows), matrix.numbers.numpy)
    scales, start = torch.empty(rows), 0
    for part, numbers, scale in matrix.rows():
        end = start + len(part)
        transposed[:, start:end] = matrix.numbers.store(numbers).T
        scales[start:end] = scale
        start = end
    _latest.clear()
    _latest[matrix] = array_of_scales(scales, matrix.dtype)
    return transposed


def weights_and_scales(
    source: Weight, format_: str, dtype: str
) -> tuple[ChannelWeights, ChannelScales]:
    """Returns the recipes of a quantised matrix; the arguments are those of `ChannelwiseMatrix`."""
    matrix = ChannelwiseMatrix(source=source, format=format_, dtype=dtype)
    return (
        ChannelWeights(source=source, dtype=matrix.numbers.name, matrix=matrix),
        ChannelScales(source=source, dtype=dtype, matrix=matrix),
    )


Builder = Callable[[ir.Value, ir.Value, ir.Value, ir.Value | None], list[ir.Node]]
"""Makes the nodes of a MatMul from activations, quantised weights, scales and bias."""


def one_operator(
    values: ir.Value, numbers: ir.Value, scales: ir.Value, bias: ir.Value | None
) -> list[ir.Node]:
    """Uses `com.microsoft.DynamicQuantizeMatMul`, into which ONNX Runtime fuses the others."""
    inputs = [values, numbers, scales, *([] if bias is None else [None, bias])]
    return [ir.node("DynamicQuantizeMatMul", inputs, domain="com.microsoft", version=1)]


def standard_operators(
    values: ir.Value, numbers: ir.Value, scales: ir.Value, bias: ir.Value | None
) -> list[ir.Node]:
    """Uses ONNX's standard operators alone."""
    quantised = ir.node("DynamicQuantizeLinear", [values], num_outputs=3)
    integers, scale, zero = quantised.outputs
    matmul = ir.node("MatMulInteger", [integers, numbers, zero])
    floats = ir.node("Cast", matmul.outputs, {"to": ir.DataType.FLOAT.value})
    scale_of_both = ir.node("Mul", [scale, scales])
    scaled = ir.node("Mul", [floats.outputs[0], scale_of_both.outputs[0]])
    nodes = [quantised, matmul, floats, scale_of_both, scaled]
    return nodes if bias is None else [*nodes, ir.node("Add", [scaled.outputs[0], bias])]


BUILDERS: Mapping[str, Builder] = {
    "one_operator": one_operator,
    "standard_operators": standard_operators,
}
"""How a MatMul with dynamic activations can be written."""

BUILDER = "one_operator"
"""The row of `BUILDERS` that builds use."""


def static_operators(
    model: ir.Model, name: str, matrix: ChannelwiseMatrix, scale: float
) -> Builder:
    """Puts `QuantizeLinear` and `DequantizeLinear` around both factors, with a constant scale.

    TensorRT reads the three as one MatMul in eight bits, and so does ONNX Runtime if they are int8
    and float32.

    Args:
        model: gets initializers for the scale and for a zero point, whose dtype is the format's.
        name: of the weight.
        matrix: the weight.
        scale: of the activations.
    """

    def constant(suffix: str, value: npt.NDArray[Any]) -> ir.Value:
        initializer = ir.Value(name=f"{name}.{suffix}", const_value=ir.tensor(value))
        initializer.shape = ir.Shape([])
        initializer.type = ir.TensorType(ir.DataType.from_numpy(value.dtype))
        return model.graph.initializers.setdefault(f"{name}.{suffix}", initializer)

    rounded = round_scales(torch.tensor(scale), matrix.dtype)
    parameters = [
        constant("input_scale", array_of_scales(rounded, matrix.dtype)),
        constant("input_zero", np.zeros((), matrix.numbers.numpy)),
    ]

    def build(
        values: ir.Value, numbers: ir.Value, scales: ir.Value, bias: ir.Value | None
    ) -> list[ir.Node]:
        barrier = _barrier(values) if matrix.format == "e4m3" else []
        values = barrier[0].outputs[0] if barrier else values
        quantised = ir.node("QuantizeLinear", [values, *parameters])
        floats = ir.node("DequantizeLinear", [quantised.outputs[0], *parameters])
        weights = ir.node("DequantizeLinear", [numbers, scales], {"axis": 1})
        matmul = ir.node("MatMul", [floats.outputs[0], weights.outputs[0]])
        nodes = [*barrier, quantised, floats, weights, matmul]
        return nodes if bias is None else [*nodes, ir.node("Add", [matmul.outputs[0], bias])]

    return build


def _barrier(values: ir.Value) -> list[ir.Node]:
    """Returns a `Max` of one value, which changes nothing, behind an operator that moves values.

    ONNX Runtime would move `QuantizeLinear` to the other side of such an operator, which need not
    take floats of eight bits (`Transpose` does not, up to opset 20), and then refuse the graph.
    TensorRT builds the same plan with it as without.
    """
    producer = values.producer()
    moves = producer is not None and producer.op_type in MOVING
    return [ir.node("Max", [values])] if moves else []


def quantise_matmul(
    model: ir.Model, matmul: MatMul, format_: str, scale: float | None = None
) -> dict[str, Recipe]:
    """Replaces a matmul with one of weights and activations of eight bits.

    Everything else stays in the dtype that the graph has been traced in.

    Args:
        model: the graph, changed in place.
        matmul: to be replaced.
        format_: a key of `export.quantisation.formats.FORMATS`.
        scale: of the activations; `None` computes it at run time.

    Returns:
        The recipes of the initializers that it reads, by name.
    """
    weights, scales = weights_and_scales(matmul.recipe.source, format_, matmul.recipe.dtype)
    matrix, name = weights.matrix, f"{matmul.name}.{weights.dtype}"
    assert matmul.weight.dtype is not None
    inputs = (
        declare(model, name, weights, matrix.numbers.dtype),
        declare(model, f"{name}_scales", scales, matmul.weight.dtype),
    )
    dynamic = BUILDERS[BUILDER]
    build = dynamic if scale is None else static_operators(model, matmul.name, matrix, scale)
    replace(model, matmul, build(matmul.input, *inputs, matmul.bias))
    return {name: weights, f"{name}_scales": scales}
