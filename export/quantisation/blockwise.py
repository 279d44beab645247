"""Block-wise quantisation: weights of four or eight bits, activations stay floats.

Each row of a weight matrix is cut into blocks of `block_size` weights. A block keeps one integer a
weight, one scale in the dtype of the activations and, if it is not symmetric, the integer that
stands for 0. ONNX Runtime multiplies by such a matrix without unpacking it
(`com.microsoft.MatMulNBits`). These blocks are not those of `export.components.block_marks`, which
are the layers of a transformer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from iblip.export.errors import ExportError
from iblip.export.quantisation.matmuls import MatMul, declare, replace
from iblip.export.quantisation.options import Quantisation
from iblip.export.weights.casts import array_from_tensor, tensor_from_array
from iblip.export.weights.recipe import Recipe
from iblip.export.weights.weight import Weight

ACCURACY_LEVEL = 4
"""Activations are rounded to int8 block by block, as in llama.cpp. Level 0 would keep float32 and
be several times as slow."""

PIECE = 2**19
"""Weights that are quantised at once: 2 MiB of float32, which stay in a core's caches from step to
step. Eight times as many took up to three times as long."""

RoundScales = Callable[[torch.Tensor], torch.Tensor]
"""Rounds float32 scales to what the graph can hold, and returns them as float32."""

Quantised = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""What blocks `[blocks, block_size]` become: integers, uint8 of the same shape; scales, float32
`[blocks]`; and zero points, the integers that stand for 0, uint8 `[blocks]`."""


def round_symmetric(blocks: torch.Tensor, bits: int, round_scales: RoundScales) -> Quantised:
    """Rounds to the nearest integer, with the zero point in the middle of the range.

    The weight of greatest magnitude becomes 0, which stands for `-2 ** (bits - 1)` scales, so that
    a block uses the whole range on that side, as in llama.cpp's Q4_0.
    """
    half = 2 ** (bits - 1)
    highest, lowest = blocks.amax(1), blocks.amin(1)
    scales = round_scales(torch.where(highest > -lowest, highest, lowest) / -half)
    zeros = torch.full(scales.shape, half, dtype=torch.uint8)
    return _to_integers(blocks, scales, float(half), bits), scales, zeros


def round_asymmetric(blocks: torch.Tensor, bits: int, round_scales: RoundScales) -> Quantised:
    """Rounds to the nearest integer; the range is that of the weights, extended to include 0."""
    most = 2**bits - 1
    lowest = blocks.amin(1).clamp_(max=0)
    scales = round_scales((blocks.amax(1).clamp_(min=0) - lowest) / most)
    zeros = torch.where(scales == 0, 0, -lowest / scales).round_().clamp_(0, most)
    return _to_integers(blocks, scales, zeros[:, None], bits), scales, zeros.to(torch.uint8)


def _to_integers(
    blocks: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | float, bits: int
) -> torch.Tensor:
    factors = torch.where(scales == 0, 0, 1 / scales)[:, None]
    # Adding a half and cutting off is rounding, and one pass less.
    floats = (blocks * factors).add_(zeros + 0.5).clamp_(0, 2**bits - 1)
    return floats.to(torch.int16).to(torch.uint8)  # at once takes torch four times as long


def k_quant(blocks: torch.Tensor, bits: int, round_scales: RoundScales) -> Quantised:
    """Rounds with the scale and zero point that minimise the weighted error of each block.

    Larger weights count more (llama.cpp's k-quants). The implementation is ONNX Runtime's.
    """
    from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

    with np.errstate(divide="ignore", invalid="ignore"):  # blocks of one value
        integers, scales, zeros = quant_tensor_k_quant_cpu(blocks.numpy(), bits, blocks.shape[1])
    return (
        torch.from_numpy(integers.astype(np.uint8)),
        round_scales(torch.from_numpy(scales[:, 0].astype(np.float32))),
        torch.from_numpy(zeros[:, 0]),
    )


METHODS: Mapping[tuple[str, bool], Callable[[torch.Tensor, int, RoundScales], Quantised]] = {
    ("rtn", True): round_symmetric,
    ("rtn", False): round_asymmetric,
    ("k-quant", False): k_quant,
}
"""Rounding functions by `Quantisation.method` and `Quantisation.symmetric`."""


def read_rows(matrix: Weight) -> Iterator[npt.NDArray[Any]]:
    """Yields consecutive rows of a matrix: at most `PIECE` weights, or one row."""
    for piece in matrix.pieces():
        step = max(1, PIECE // piece.shape[1])
        for start in range(0, len(piece), step):
            yield piece[start : start + step]


@dataclass(frozen=True, kw_only=True)
class BlockwiseMatrix:
    """A matrix `[out, in]`, and how it is quantised.

    Attributes:
        source: the matrix.
        bits, block_size, symmetric, method: as in `Quantisation`.
        dtype: of its scales, which is that of the activations: a key of
            `export.artifact.contract.DTYPES`.
    """

    source: Weight
    bits: int
    block_size: int
    symmetric: bool
    method: str
    dtype: str = "float32"

    @classmethod
    def from_recipe(cls, recipe: Recipe, quantisation: Quantisation) -> Self:
        """Returns the matrix of a recipe as a component with this quantisation has it."""
        assert quantisation.block_size is not None
        return cls(
            source=recipe.source,
            dtype=recipe.dtype,
            bits=quantisation.bits,
            block_size=quantisation.block_size,
            symmetric=quantisation.symmetric,
            method=quantisation.method,
        )

    @property
    def blocks(self) -> int:
        """Number of blocks in a row."""
        return math.ceil(self.source.shape[1] / self.block_size)

    def encode(self) -> Iterator[tuple[npt.NDArray[Any], ...]]:
        """Yields integers, scales and zero points of some rows at a time, as the graph has them."""
        for rows in read_rows(self.source):
            yield self._encode(rows)

    def round_trip(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields some rows at a time, before and after they are quantised, both float32."""
        for rows in read_rows(self.source):
            integers, scales, zeros = self._quantise(rows)
            values = (integers.to(torch.float32) - zeros[:, None]) * scales[:, None]
            yield floats_from_array(rows), values.reshape(len(rows), -1)[:, : rows.shape[1]]

    def _quantise(self, rows: npt.NDArray[Any]) -> Quantised:
        padding = self.blocks * self.block_size - rows.shape[1]
        floats = floats_from_array(rows)
        if padding:
            floats = torch.nn.functional.pad(floats, (0, padding))
        quantise = METHODS[self.method, self.symmetric]
        return quantise(floats.reshape(-1, self.block_size), self.bits, self._round_scales)

    def _round_scales(self, scales: torch.Tensor) -> torch.Tensor:
        """Raises ExportError if the range of `dtype` does not hold them."""
        rounded = scales.to(getattr(torch, self.dtype)).to(torch.float32)
        if not bool(rounded.isfinite().all()):
            raise ExportError(
                f"{self.source.name}: its weights have scales up to"
                f" {float(scales.abs().max()):.3g}, which {self.dtype} does not hold. Build this"
                " component with --precision fp32."
            )
        return rounded

    def _encode(self, rows: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
        integers, scales, zeros = self._quantise(rows)
        shape = len(rows), self.blocks
        packed = _pack(integers.reshape(*shape, self.block_size), self.bits)
        even = torch.nn.functional.pad(zeros.reshape(shape), (0, -self.blocks % 2))
        width = math.ceil(self.blocks * self.bits / 8)
        zeros = _pack(even, self.bits)[:, :width]
        scales = scales.reshape(shape).to(getattr(torch, self.dtype))
        return packed.numpy(), array_from_tensor(scales), zeros.numpy()


def _pack(integers: torch.Tensor, bits: int) -> torch.Tensor:
    """Packs two integers of four bits into a byte along the last axis, the first one low."""
    if bits == 8:
        return integers
    pairs = integers.contiguous().view(torch.int16)  # the second of each in the upper byte
    return (pairs | pairs >> 4).to(torch.uint8)


def floats_from_array(values: npt.NDArray[Any]) -> torch.Tensor:
    """Returns a float32 copy."""
    return tensor_from_array(values).to(torch.float32)


_latest: dict[BlockwiseMatrix, tuple[npt.NDArray[Any], npt.NDArray[Any]]] = {}
"""Scales and zero points of the matrix that was encoded last, so that it is read once."""


@dataclass(frozen=True, kw_only=True)
class Integers(Recipe):
    """The quantised weights: uint8 `[out, blocks, block_size * bits / 8]`."""

    matrix: BlockwiseMatrix

    @property
    def shape(self) -> tuple[int, ...]:
        """`(out, blocks, block_size * bits / 8)`."""
        matrix = self.matrix
        return self.source.shape[0], matrix.blocks, matrix.block_size * matrix.bits // 8

    @property
    def in_place(self) -> None:
        """Always `None`: the checkpoint does not hold these bytes."""

    def pieces(self) -> Iterator[npt.NDArray[Any]]:
        """Yields the integers of some rows at a time."""
        others = []
        for integers, *rest in self.matrix.encode():
            others.append(rest)
            yield integers
        _latest.clear()
        scales, zeros = zip(*others, strict=True)
        _latest[self.matrix] = np.concatenate(scales), np.concatenate(zeros)

    def evaluate(self) -> npt.NDArray[Any]:
        """Returns all integers."""
        return np.concatenate(list(self.pieces()))


@dataclass(frozen=True, kw_only=True)
class Scales(Integers):
    """The scale of every block, in the matrix's `dtype`: `[out, blocks]`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`(out, blocks)`."""
        return self.source.shape[0], self.matrix.blocks

    def pieces(self) -> Iterator[npt.NDArray[Any]]:
        """Yields all scales at once: they are small."""
        yield self.evaluate()

    def evaluate(self) -> npt.NDArray[Any]:
        """Returns the scales, which are at hand if the integers have just been written."""
        return self._scales_and_zeros()[0]

    def _scales_and_zeros(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        if self.matrix not in _latest:
            for _ in Integers(source=self.source, dtype="uint8", matrix=self.matrix).pieces():
                pass
        return _latest[self.matrix]


@dataclass(frozen=True, kw_only=True)
class ZeroPoints(Scales):
    """The integer that stands for 0 in every block: uint8 `[out, ceil(blocks * bits / 8)]`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`(out, ceil(blocks * bits / 8))`."""
        return self.source.shape[0], math.ceil(self.matrix.blocks * self.matrix.bits / 8)

    def evaluate(self) -> npt.NDArray[Any]:
        """Returns the zero points, which are at hand if the integers have just been written."""
        return self._scales_and_zeros()[1]


def quantise_matmul(
    model: ir.Model, matmul: MatMul, quantisation: Quantisation
) -> dict[str, Recipe]:
    """Replaces a matmul and its bias with `MatMulNBits`.

    Returns:
        The recipes of the initializers that it reads, by name.
    """
    rows, columns = matmul.recipe.source.shape
    matrix = BlockwiseMatrix.from_recipe(matmul.recipe, quantisation)
    assert matmul.weight.dtype is not None
    parts: list[tuple[str, type[Integers], str, ir.DataType]] = [
        (f"int{matrix.bits}", Integers, "uint8", ir.DataType.UINT8),
        (f"int{matrix.bits}_scales", Scales, matrix.dtype, matmul.weight.dtype),
    ]
    if not matrix.symmetric:
        parts.append((f"int{matrix.bits}_zeros", ZeroPoints, "uint8", ir.DataType.UINT8))
    recipes: dict[str, Recipe] = {}
    inputs: list[ir.Value | None] = [matmul.input]
    nodes: list[ir.Node] = []
    for suffix, kind, dtype, ir_dtype in parts:
        name = f"{matmul.name}.{suffix}"
        recipes[name] = kind(source=matrix.source, dtype=dtype, matrix=matrix)
        part = declare(model, name, recipes[name], ir_dtype)
        if kind is Scales and matmul.cast is not None:  # other graphs have them as they are
            nodes.append(ir.node("Cast", [part], {"to": matmul.cast.value}))
            (cast,) = nodes[-1].outputs
            cast.name = f"{name}.{matmul.cast.name.lower()}"
            cast.shape, cast.dtype, part = part.shape, matmul.cast, cast
        inputs.append(part)
    if matmul.bias is not None:
        inputs += [None] * (5 - len(inputs)) + [matmul.bias]
    attributes = {
        "K": columns,
        "N": rows,
        "bits": matrix.bits,
        "block_size": matrix.block_size,
        "accuracy_level": ACCURACY_LEVEL,
    }
    node = ir.node("MatMulNBits", inputs, attributes, domain="com.microsoft", version=1)
    replace(model, matmul, [*nodes, node])
    return recipes
