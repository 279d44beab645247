"""Weights of four or eight bits in blocks, for products whose other factor stays float.

Each row of a weight matrix is cut into blocks; a block keeps one float32 scale, a whole number a
weight and, where it is not symmetric, one for 0. ONNX Runtime multiplies by such a matrix without
unpacking it (`com.microsoft.MatMulNBits`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from iblip.export.quantisation.options import Quantisation
from iblip.export.quantisation.products import Product, declare, replace
from iblip.export.weights.casts import tensor_from_array
from iblip.export.weights.recipe import Recipe
from iblip.export.weights.weight import Weight

ACCURACY_LEVEL = 4
"""Activations are rounded to int8 a block, as llama.cpp does; level 0 would keep float32, and take
several times as long."""

PIECE = 2**19
"""Weights that are worked on at once: 2 MiB of float32, so that every step finds them in the caches
of its core. Eight times as many took up to three times as long."""

Quantised = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Of blocks `[blocks, block_size]`: whole numbers uint8 of that shape, scales float32 `[blocks]`,
and the whole numbers that stand for 0, uint8 `[blocks]`."""


def round_symmetric(blocks: torch.Tensor, bits: int) -> Quantised:
    """To the nearest, with 0 in the middle.

    The weight of greatest magnitude becomes 0, which stands for `-2 ** (bits - 1)` scales: so the
    whole range of a block without its like on the other side is used, as in llama.cpp's Q4_0.
    """
    half = 2 ** (bits - 1)
    highest, lowest = blocks.amax(1), blocks.amin(1)
    scales = torch.where(highest > -lowest, highest, lowest) / -half
    zeros = torch.full(scales.shape, half, dtype=torch.uint8)
    return _numbers(blocks, scales, float(half), bits), scales, zeros


def round_asymmetric(blocks: torch.Tensor, bits: int) -> Quantised:
    """To the nearest, with the range from the lowest to the highest weight, or 0."""
    most = 2**bits - 1
    lowest = blocks.amin(1).clamp_(max=0)
    scales = (blocks.amax(1).clamp_(min=0) - lowest) / most
    zeros = torch.where(scales == 0, 0, -lowest / scales).round_().clamp_(0, most)
    return _numbers(blocks, scales, zeros[:, None], bits), scales, zeros.to(torch.uint8)


def _numbers(
    blocks: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | float, bits: int
) -> torch.Tensor:
    factors = torch.where(scales == 0, 0, 1 / scales)[:, None]
    # Adding a half and cutting off is rounding, and one pass less.
    return (blocks * factors).add_(zeros + 0.5).clamp_(0, 2**bits - 1).to(torch.uint8)


def k_quant(blocks: torch.Tensor, bits: int) -> Quantised:
    """ONNX Runtime's: scale and zero point that keep the weighted error of a block least.

    A weight counts the more, the larger it is (llama.cpp's k-quants).
    """
    from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

    with np.errstate(divide="ignore", invalid="ignore"):  # blocks of one value
        numbers, scales, zeros = quant_tensor_k_quant_cpu(blocks.numpy(), bits, blocks.shape[1])
    return (
        torch.from_numpy(numbers.astype(np.uint8)),
        torch.from_numpy(scales[:, 0].astype(np.float32)),
        torch.from_numpy(zeros[:, 0]),
    )


METHODS: Mapping[tuple[str, bool], Callable[[torch.Tensor, int], Quantised]] = {
    ("rtn", True): round_symmetric,
    ("rtn", False): round_asymmetric,
    ("k-quant", False): k_quant,
}
"""By `Quantisation.method` and `Quantisation.symmetric`."""


def rows_of(matrix: Weight) -> Iterator[npt.NDArray[Any]]:
    """A matrix, some rows at a time: at most `PIECE` weights, or one row."""
    for piece in matrix.pieces():
        step = max(1, PIECE // piece.shape[1])
        for start in range(0, len(piece), step):
            yield piece[start : start + step]


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """How a matrix `[out, in]` becomes whole numbers.

    Attributes:
        source: the matrix.
        bits, block_size, symmetric, method: as in `Quantisation`.
    """

    source: Weight
    bits: int
    block_size: int
    symmetric: bool
    method: str

    @property
    def count(self) -> int:
        """Blocks of a row."""
        return math.ceil(self.source.shape[1] / self.block_size)

    def parts(self) -> Iterator[tuple[npt.NDArray[Any], ...]]:
        """Numbers, scales and zero points of some rows at a time, each as its recipe has them."""
        for rows in rows_of(self.source):
            yield self._part(rows)

    def compared(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Some rows at a time, and what they are once they are quantised."""
        for part in rows_of(self.source):
            numbers, scales, zeros = self._quantised(part)
            made = (numbers.to(torch.float32) - zeros[:, None]) * scales[:, None]
            yield floats_from_array(part), made.reshape(len(part), -1)[:, : part.shape[1]]

    def _quantised(self, rows: npt.NDArray[Any]) -> Quantised:
        spare = self.count * self.block_size - rows.shape[1]
        floats = floats_from_array(rows)
        if spare:
            floats = torch.nn.functional.pad(floats, (0, spare))
        quantise = METHODS[self.method, self.symmetric]
        return quantise(floats.reshape(-1, self.block_size), self.bits)

    def _part(self, rows: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
        numbers, scales, zeros = self._quantised(rows)
        shape = len(rows), self.count
        packed = _packed(numbers.reshape(*shape, self.block_size), self.bits)
        even = torch.nn.functional.pad(zeros.reshape(shape), (0, -self.count % 2))
        width = math.ceil(self.count * self.bits / 8)
        zeros = _packed(even, self.bits)[:, :width]
        return packed.numpy(), scales.reshape(shape).numpy(), zeros.numpy()


def _packed(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """Two numbers of four bits a byte along the last axis, the first one low."""
    if bits == 8:
        return numbers
    pairs = numbers.contiguous().view(torch.int16)  # the second of each in the upper byte
    return (pairs | pairs >> 4).to(torch.uint8)


def floats_from_array(values: npt.NDArray[Any]) -> torch.Tensor:
    """A float32 copy."""
    return tensor_from_array(values).to(torch.float32)


_made: dict[Blocks, tuple[npt.NDArray[Any], npt.NDArray[Any]]] = {}
"""Scales and zero points of the matrix whose numbers were made last: so it is read once."""


@dataclass(frozen=True, kw_only=True)
class Numbers(Recipe):
    """The weights: uint8 `[out, blocks, block_size * bits / 8]`."""

    blocks: Blocks

    @property
    def shape(self) -> tuple[int, ...]:
        """See above."""
        blocks = self.blocks
        return self.source.shape[0], blocks.count, blocks.block_size * blocks.bits // 8

    @property
    def in_place(self) -> None:
        """Never: these are no bytes of the checkpoint."""

    def pieces(self) -> Iterator[npt.NDArray[Any]]:
        """The weights, some rows at a time."""
        others = []
        for numbers, *rest in self.blocks.parts():
            others.append(rest)
            yield numbers
        _made.clear()
        scales, zeros = zip(*others, strict=True)
        _made[self.blocks] = np.concatenate(scales), np.concatenate(zeros)

    def evaluate(self) -> npt.NDArray[Any]:
        """All of them."""
        return np.concatenate(list(self.pieces()))


@dataclass(frozen=True, kw_only=True)
class Scales(Numbers):
    """The scale of every block: float32 `[out, blocks]`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """See above."""
        return self.source.shape[0], self.blocks.count

    def pieces(self) -> Iterator[npt.NDArray[Any]]:
        """All at once: they are small."""
        yield self.evaluate()

    def evaluate(self) -> npt.NDArray[Any]:
        """As they were made with the weights, or made now."""
        return self._others()[0]

    def _others(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        if self.blocks not in _made:
            for _ in Numbers(source=self.source, dtype="uint8", blocks=self.blocks).pieces():
                pass
        return _made[self.blocks]


@dataclass(frozen=True, kw_only=True)
class ZeroPoints(Scales):
    """The number that stands for 0 in every block: uint8 `[out, blocks * bits / 8]`, rounded up."""

    @property
    def shape(self) -> tuple[int, ...]:
        """See above."""
        return self.source.shape[0], math.ceil(self.blocks.count * self.blocks.bits / 8)

    def evaluate(self) -> npt.NDArray[Any]:
        """As they were made with the weights, or made now."""
        return self._others()[1]


def blocks_of(source: Weight, quantisation: Quantisation) -> Blocks:
    """How this matrix is quantised."""
    assert quantisation.block_size is not None
    return Blocks(
        source=source,
        bits=quantisation.bits,
        block_size=quantisation.block_size,
        symmetric=quantisation.symmetric,
        method=quantisation.method,
    )


def quantise_product(
    model: ir.Model, product: Product, quantisation: Quantisation
) -> dict[str, Recipe]:
    """Puts `MatMulNBits` in the place of a product, with its bias; returns what it wants."""
    rows, columns = product.recipe.source.shape
    blocks = blocks_of(product.recipe.source, quantisation)
    parts: list[tuple[str, type[Numbers], str, ir.DataType]] = [
        (f"int{blocks.bits}", Numbers, "uint8", ir.DataType.UINT8),
        (f"int{blocks.bits}_scales", Scales, "float32", ir.DataType.FLOAT),
    ]
    if not blocks.symmetric:
        parts.append((f"int{blocks.bits}_zeros", ZeroPoints, "uint8", ir.DataType.UINT8))
    made: dict[str, Recipe] = {}
    inputs: list[ir.Value | None] = [product.input]
    for suffix, kind, dtype, ir_dtype in parts:
        name = f"{product.name}.{suffix}"
        made[name] = kind(source=blocks.source, dtype=dtype, blocks=blocks)
        inputs.append(declare(model, name, made[name], ir_dtype))
    if product.bias is not None:
        inputs += [None] * (5 - len(inputs)) + [product.bias]
    attributes = {
        "K": columns,
        "N": rows,
        "bits": blocks.bits,
        "block_size": blocks.block_size,
        "accuracy_level": ACCURACY_LEVEL,
    }
    node = ir.node("MatMulNBits", inputs, attributes, domain="com.microsoft", version=1)
    replace(model, product, [node])
    return made
