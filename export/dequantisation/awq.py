"""AWQ (arXiv 2306.00978) in AutoAWQ's GEMM layout.

Beside each other lie `qweight` int32 `[in, out / 8]`, eight integers of 4 bits in a word, in an
order of its own; `qzeros` int32 `[groups, out / 8]`, packed alike; and `scales` `[groups, out]`.
Inputs are in order, as many in each group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iblip.export.dequantisation.dequantised import FLOATS, Dequantised, check_parts
from iblip.export.dequantisation.modules import modules_of, settings_text
from iblip.export.dequantisation.packing import WORD, unpack
from iblip.export.errors import CheckpointError
from iblip.export.messages import shown
from iblip.export.weights.casts import tensor_from_array
from iblip.export.weights.weight import Weight

if TYPE_CHECKING:
    import torch

BITS = 4
PER_WORD = WORD // BITS

PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in its word the integer of each of eight outputs lies, counted from the lowest bits."""


@dataclass(frozen=True, kw_only=True)
class Awq(Dequantised):
    """A matrix in groups of inputs.

    Attributes:
        qweight, qzeros, scales: as in the module's docstring.
    """

    qweight: Weight
    qzeros: Weight
    scales: Weight

    @property
    def method(self) -> str:
        """The method and the number of bits."""
        return f"AWQ, {BITS} bits"

    @property
    def parts(self) -> tuple[Weight, ...]:
        """Integers, zero points and scales."""
        return self.qweight, self.qzeros, self.scales

    def rows(self, first: int, last: int) -> torch.Tensor:
        """See `Dequantised`."""
        group = self.shape[1] // self.scales.shape[0]
        integers, zeros = (self._unpack(part, first, last) for part in (self.qweight, self.qzeros))
        scales = tensor_from_array(self.scales.read()[:, first:last]).T
        # [out, in], in the dtype of the scales: as the library multiplies, rounded once.
        return (integers - zeros.repeat_interleave(group, dim=1)) * scales.repeat_interleave(
            group, dim=1
        )

    def _unpack(self, part: Weight, first: int, last: int) -> torch.Tensor:
        """The integers of the outputs from `first` to before `last`: `[outputs, rows of part]`."""
        start, stop = first // PER_WORD, -(-last // PER_WORD)
        words = tensor_from_array(part.read()[:, start:stop])
        by_place = unpack(words.T, BITS).reshape(stop - start, PER_WORD, -1)
        outputs = by_place[:, list(PLACES)].reshape((stop - start) * PER_WORD, -1)
        return outputs[first % PER_WORD :][: last - first]


def weights_of_awq(tensors: Mapping[str, Weight], config: Mapping[str, Any]) -> dict[str, Weight]:
    """Returns the tensors of a checkpoint with its quantised weights in place of what they are of.

    Args:
        tensors: by the file's names.
        config: `quantization_config`, or AutoAWQ's own file of it.

    Raises:
        CheckpointError: the layout is another, or a weight's tensors do not fit each other.
    """
    layout = settings_text(config, "version", "format", "checkpoint_format") or "gemm"
    bits = config.get("bits", config.get("w_bit", BITS))
    if layout != "gemm" or bits != BITS:
        raise CheckpointError(
            f"the weights are quantised by AWQ to {shown(bits)} bits in the layout {shown(layout)},"
            f" which is not supported; {BITS} bits in the layout gemm are. Take the model as it was"
            " published so (version: GEMM), or before it was quantised."
        )
    modules, rest = modules_of("AWQ", tensors, ("qweight", "qzeros", "scales"), ())
    return {**rest, **{f"{m}.weight": _awq(m, parts) for m, parts in modules.items()}}


def _awq(module: str, parts: Mapping[str, Weight]) -> Weight:
    qweight, qzeros, scales = (parts[name] for name in ("qweight", "qzeros", "scales"))
    if len(qweight.shape) != 2 or len(scales.shape) != 2 or not all(scales.shape):
        raise CheckpointError(
            f"{qweight.name} has shape {list(qweight.shape)} and {scales.name}"
            f" {list(scales.shape)}; expected two axes each"
        )
    inputs, (groups, outputs) = qweight.shape[0], scales.shape
    expected = {
        "qweight": (qweight, (inputs, outputs // PER_WORD)),
        "qzeros": (qzeros, (groups, outputs // PER_WORD)),
    }
    check_parts(module, expected)
    if inputs % groups or outputs % PER_WORD:
        raise CheckpointError(
            f"{scales.name} has shape {list(scales.shape)}, which {inputs} inputs, and"
            f" {PER_WORD} outputs in a word, do not fit"
        )
    if {qweight.dtype, qzeros.dtype} != {"int32"} or scales.dtype not in FLOATS:
        raise CheckpointError(
            f"{module} has integers of {qweight.dtype} and {qzeros.dtype} and scales of"
            f" {scales.dtype}; expected int32 and floats"
        )
    return Awq(
        name=f"{module}.weight",
        dtype=scales.dtype,
        shape=(outputs, inputs),
        qweight=qweight,
        qzeros=qzeros,
        scales=scales,
    )
