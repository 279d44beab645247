"""bitsandbytes: rows of 8 bits (LLM.int8), and blocks of 4 (NF4 and FP4, QLoRA).

The files are those of its `Linear8bitLt` and `Linear4bit`, as `save_pretrained` of transformers
writes them. 8 bits: `weight` int8 and `SCB`, the largest magnitude of each row (arXiv 2208.07339).
4 bits: `weight`, two in a byte, and beside it `weight.absmax`, the largest magnitude of each block,
`weight.quant_map`, the 16 values, and `weight.quant_state.bitsandbytes__nf4` or `…__fp4`, a JSON
text. With double quantisation `absmax` is itself quantised to 8 bits, with `weight.nested_absmax`
and `weight.nested_quant_map` (arXiv 2305.14314, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeGuard

from iblip.export.dequantisation.dequantised import (
    FLOATS,
    Dequantised,
    as_bytes,
    check_parts,
    read_floats,
)
from iblip.export.errors import CheckpointError
from iblip.export.messages import shown
from iblip.export.system.json_text import parse_json
from iblip.export.weights.casts import tensor_from_array
from iblip.export.weights.weight import SourceTensor, Weight

if TYPE_CHECKING:
    import torch

SCALES = ".SCB"
STATE = ".quant_state.bitsandbytes__"
MARKS = (SCALES, STATE)
"""What is in the names of the tensors beside a weight of 8 or of 4 bits."""

INVERSE_127 = 7.874015718698502e-3
"""1 / 127, as the library spells it (`int8_vectorwise_dequant`)."""


@dataclass(frozen=True, kw_only=True)
class EightBits(Dequantised):
    """Rows of int8.

    Attributes:
        integers: the bytes, row by row.
        scales: float32 `[out]`, the largest magnitude of each row.
    """

    integers: SourceTensor
    scales: Weight

    @property
    def method(self) -> str:
        """The library and the number of bits."""
        return "bitsandbytes, 8 bits"

    @property
    def parts(self) -> tuple[Weight, ...]:
        """Integers and scales."""
        return self.integers, self.scales

    def rows(self, first: int, last: int) -> torch.Tensor:
        """See `Dequantised`."""
        import torch

        width = self.shape[1]
        integers = self.integers.read()[first * width : last * width].reshape(-1, width)
        scales = read_floats(self.scales)[first:last, None]
        return tensor_from_array(integers).view(torch.int8) * scales * INVERSE_127


@dataclass(frozen=True, kw_only=True)
class Nested:
    """How the magnitudes of blocks are quantised themselves: double quantisation.

    Attributes:
        magnitudes: float32, the largest of each block of them.
        values: float32 `[256]`, by their integers.
        block: how many share one.
        offset: that was taken off all of them.
    """

    magnitudes: Weight
    values: Weight
    block: int
    offset: float


@dataclass(frozen=True, kw_only=True)
class FourBits(Dequantised):
    """Blocks of 4 bits.

    Attributes:
        kind: `nf4` or `fp4`.
        packed: the bytes; the first of two elements is in the upper half.
        magnitudes: of each block, float32, or uint8 if they are quantised.
        values: float32 `[16]`, by the integers.
        block: elements in a block; they follow one another over the ends of rows.
        nested: of magnitudes that are quantised.
    """

    kind: str
    packed: SourceTensor
    magnitudes: Weight
    values: Weight
    block: int
    nested: Nested | None = None

    @property
    def method(self) -> str:
        """The library and the kind."""
        return f"bitsandbytes, {self.kind}"

    @property
    def parts(self) -> tuple[Weight, ...]:
        """Packed integers, magnitudes and values, and those of the magnitudes."""
        nested = (self.nested.magnitudes, self.nested.values) if self.nested else ()
        return self.packed, self.magnitudes, self.values, *nested

    def rows(self, first: int, last: int) -> torch.Tensor:
        """See `Dequantised`."""
        import torch

        width = math.prod(self.shape[1:])
        start, stop = first * width, last * width
        pairs = tensor_from_array(self.packed.read()[start // 2 : -(-stop // 2)])
        integers = torch.stack((pairs >> 4, pairs & 0xF), dim=1).reshape(-1)
        integers = integers[start % 2 :][: stop - start]
        blocks = self._magnitudes(start // self.block, -(-stop // self.block))
        magnitudes = blocks.repeat_interleave(self.block)[start % self.block :][: stop - start]
        values = read_floats(self.values)
        if self.kind == "fp4":  # whose highest bit is the sign: -0, too, where the file has 0
            values = torch.cat((values[:8], -values[:8]))
        floats = values[integers.to(torch.int64)] * magnitudes
        return floats.to(getattr(torch, self.dtype)).reshape(last - first, *self.shape[1:])

    def _magnitudes(self, first: int, last: int) -> torch.Tensor:
        """Those of the blocks from `first` to before `last`, float32."""
        import torch

        own = tensor_from_array(self.magnitudes.read().reshape(-1)[first:last])
        if self.nested is None:
            return own.to(torch.float32)
        places = torch.arange(first, last) // self.nested.block
        nested = read_floats(self.nested.magnitudes)[places]
        return read_floats(self.nested.values)[own.to(torch.int64)] * nested + self.nested.offset


def weights_of_bitsandbytes(
    tensors: Mapping[str, Weight], config: Mapping[str, Any]
) -> dict[str, Weight]:
    """Returns the tensors of a checkpoint with its quantised weights in place of what they are of.

    Args:
        tensors: by the file's names.
        config: is not needed: the tensors say it all.

    Raises:
        CheckpointError: a weight lacks one of its tensors, or is of a form that is not known.
    """
    used: set[str] = set()
    weights: dict[str, Weight] = {}
    for name in tensors:
        if name.endswith(SCALES):
            weight = f"{name.removesuffix(SCALES)}.weight"
            weights[weight] = _eight_bits(weight, tensors, used)
        elif STATE in name:
            weight = name.partition(STATE)[0]
            weights[weight] = _four_bits(weight, name, tensors, used)
    return {**{n: t for n, t in tensors.items() if n not in used}, **weights}


def _eight_bits(name: str, tensors: Mapping[str, Weight], used: set[str]) -> Weight:
    stem = name.removesuffix(".weight")
    integers, scales = _take(name, tensors, used), _take(f"{stem}{SCALES}", tensors, used)
    layout = f"{stem}.weight_format"
    if layout in tensors:
        found = _read_small(_take(layout, tensors, used))
        if found is not None and any(found):
            raise CheckpointError(
                f"{layout} is {found[0]}: the rows of {name} are in the order of one kind of GPU."
                " Load and save it once with bitsandbytes 0.45 or later, which writes them row by"
                " row."
            )
    if integers.dtype not in ("I8", "int8") or len(integers.shape) != 2:
        raise CheckpointError(
            f"{name} has {integers.dtype} {list(integers.shape)}; expected int8 [out, in] beside"
            f" {stem}{SCALES}"
        )
    shape = (integers.shape[0], integers.shape[1])
    check_parts(name, {scales.name: (scales, shape[:1])})
    return EightBits(
        name=name, dtype="float32", shape=shape, integers=as_bytes(integers), scales=scales
    )


def _four_bits(name: str, state: str, tensors: Mapping[str, Weight], used: set[str]) -> Weight:
    packed = as_bytes(_take(name, tensors, used))
    magnitudes = _take(f"{name}.absmax", tensors, used)
    values = _take(f"{name}.quant_map", tensors, used)
    facts = _State.read(state, _take(state, tensors, used))
    shape: tuple[int, ...] = (packed.length * 2,)
    dtype, block = "float16", 1
    if facts is not None:  # else it is not downloaded, and its header says no more
        shape, dtype, block = facts.shape(), facts.dtype(), facts.count("blocksize")
        blocks, size = -(-math.prod(shape) // block), -(-math.prod(shape) // 2)
        check_parts(name, {name: (packed, (size,)), magnitudes.name: (magnitudes, (blocks,))})
    check_parts(name, {values.name: (values, (16,))})
    nested = None
    if magnitudes.dtype == "uint8":
        nested = Nested(
            magnitudes=_take(f"{name}.nested_absmax", tensors, used),
            values=_take(f"{name}.nested_quant_map", tensors, used),
            block=1 if facts is None else facts.count("nested_blocksize"),
            offset=0.0 if facts is None else facts.number("nested_offset"),
        )
        check_parts(name, {nested.values.name: (nested.values, (256,))})
        if facts is not None:
            count = -(-math.prod(magnitudes.shape) // nested.block)
            check_parts(name, {nested.magnitudes.name: (nested.magnitudes, (count,))})
    return FourBits(
        name=name,
        dtype=dtype,
        shape=shape,
        kind=state.partition(STATE)[2],
        packed=packed,
        magnitudes=magnitudes,
        values=values,
        block=block,
        nested=nested,
    )


@dataclass(frozen=True)
class _State:
    """The JSON text beside a weight of 4 bits.

    Every method raises CheckpointError if what it returns is not there, or is nonsense.
    """

    name: str
    facts: Mapping[str, Any]

    @classmethod
    def read(cls, name: str, tensor: Weight) -> Self | None:
        """Reads it; `None` if its file has not been downloaded."""
        text = _read_small(tensor)
        if text is None:
            return None
        try:
            facts = parse_json(text, unique=True)
        except ValueError as error:
            raise CheckpointError(f"{name} is not JSON ({error})") from error
        if not isinstance(facts, dict):
            raise CheckpointError(f"{name} is {shown(facts)}; expected an object")
        return cls(name, facts)

    def shape(self) -> tuple[int, ...]:
        """The weight's."""
        shape = self.facts.get("shape")
        if not isinstance(shape, list) or not shape or not all(_is_count(n) for n in shape):
            raise self._error("shape", "numbers above 0")
        return tuple(shape)

    def dtype(self) -> str:
        """What the weight was, and is dequantised to."""
        dtype = self.facts.get("dtype")
        if dtype not in FLOATS:
            raise self._error("dtype", f"one of {', '.join(sorted(FLOATS))}")
        return str(dtype)

    def count(self, key: str) -> int:
        """A number of elements."""
        count = self.facts.get(key)
        if not _is_count(count):
            raise self._error(key, "a number above 0")
        return int(count)

    def number(self, key: str) -> float:
        """A number."""
        number = self.facts.get(key)
        if not isinstance(number, int | float):
            raise self._error(key, "a number")
        return float(number)

    def _error(self, key: str, expected: str) -> CheckpointError:
        found = shown(self.facts.get(key))
        return CheckpointError(f"{self.name} has {key} {found}; expected {expected}")


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 < value < 2**63


def _take(name: str, tensors: Mapping[str, Weight], used: set[str]) -> Weight:
    if name not in tensors:
        raise CheckpointError(
            f"{name} is missing, and the tensors beside it say that bitsandbytes has quantised its"
            " weight. Was the checkpoint saved and downloaded whole?"
        )
    used.add(name)
    return tensors[name]


def _read_small(tensor: Weight) -> bytes | None:
    """The bytes of a tensor of settings; `None` if its file has not been downloaded."""
    source = as_bytes(tensor)
    return source.read().tobytes() if source.file.exists() else None
