"""GPTQ (arXiv 2210.17323), as AutoGPTQ, GPTQModel and optimum save it.

Beside each other lie `qweight` int32 `[in · bits / 32, out]`, integers of 2, 3, 4 or 8 bits packed
along the inputs; `scales` `[groups, out]`; `qzeros` int32 `[groups, out · bits / 32]`, packed along
the outputs; and `g_idx` int32 `[in]`, the group of each input, which need not be in order
(`desc_act`). Files of the first format (`gptq`) have each zero point less 1, those of `gptq_v2` as
it is.
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

OFFSETS: Mapping[str, int] = {"gptq": 1, "gptq_v2": 0}
"""What is added to each zero point of a file, by its format."""

BITS = (2, 3, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Gptq(Dequantised):
    """A matrix in groups of inputs.

    Attributes:
        bits: of an integer, one of `BITS`.
        offset: as in `OFFSETS`.
        qweight, qzeros, scales: as in the module's docstring.
        groups: `g_idx`, or `None` if inputs are in order, as many in each group.
    """

    bits: int
    offset: int
    qweight: Weight
    qzeros: Weight
    scales: Weight
    groups: Weight | None

    @property
    def method(self) -> str:
        """The method and the number of bits."""
        return f"GPTQ, {self.bits} bits"

    @property
    def parts(self) -> tuple[Weight, ...]:
        """Integers, zero points, scales and groups."""
        return self.qweight, self.qzeros, self.scales, *filter(None, [self.groups])

    def rows(self, first: int, last: int) -> torch.Tensor:
        """See `Dequantised`."""
        groups = self._groups()
        words = tensor_from_array(self.qweight.read()[:, first:last])
        zeros = unpack(tensor_from_array(self.qzeros.read()).T, self.bits)[first:last].T
        zeros = (zeros + self.offset) & (2**self.bits - 1)  # 0 less 1 is the highest integer
        scales = tensor_from_array(self.scales.read()[:, first:last])
        # [in, out], in the dtype of the scales: as the library multiplies, rounded once.
        weights: torch.Tensor = scales[groups] * (unpack(words, self.bits) - zeros[groups])
        return weights.T

    def _groups(self) -> torch.Tensor:
        """The group of each input, int64 `[in]`."""
        import torch

        inputs, count = self.shape[1], self.scales.shape[0]
        if self.groups is None:
            return torch.arange(inputs) // (inputs // count)
        groups = tensor_from_array(self.groups.read()).to(torch.int64)
        if int(groups.min()) < 0 or int(groups.max()) >= count:
            raise CheckpointError(
                f"{self.groups.name} names group {int(groups.max())}, and {self.scales.name} has"
                f" {count}"
            )
        return groups


def weights_of_gptq(tensors: Mapping[str, Weight], config: Mapping[str, Any]) -> dict[str, Weight]:
    """Returns the tensors of a checkpoint with its quantised weights in place of what they are of.

    Args:
        tensors: by the file's names.
        config: `quantization_config`.

    Raises:
        CheckpointError: the format is another, or a weight's tensors do not fit each other.
    """
    form = settings_text(config, "checkpoint_format", "format") or "gptq"
    if form not in OFFSETS or config.get("is_marlin_format"):
        raise CheckpointError(
            f"the weights are quantised by GPTQ in the format {shown(form)}, which is not"
            f" supported; {' and '.join(OFFSETS)} are. Take the model as it was published in one of"
            " these, or before it was quantised."
        )
    modules, rest = modules_of("GPTQ", tensors, ("qweight", "qzeros", "scales"), ("g_idx",))
    weights = {f"{m}.weight": _gptq(m, parts, form, config) for m, parts in modules.items()}
    return {**rest, **weights}


def _gptq(module: str, parts: Mapping[str, Weight], form: str, config: Mapping[str, Any]) -> Weight:
    qweight, qzeros, scales = (parts[name] for name in ("qweight", "qzeros", "scales"))
    groups, own = parts.get("g_idx"), config.get("bits")
    if len(qweight.shape) != 2 or len(scales.shape) != 2 or not all(scales.shape):
        raise CheckpointError(
            f"{qweight.name} has shape {list(qweight.shape)} and {scales.name}"
            f" {list(scales.shape)}; expected two axes each"
        )
    packed = qweight.shape[0] * WORD
    # A config may give single modules other bits (`dynamic`); the number of inputs tells.
    inputs = groups.shape[0] if groups and groups.shape else packed // own if own in BITS else 0
    bits = packed // inputs if inputs else 0
    if bits not in BITS or bits * inputs != packed or (inputs % scales.shape[0] and not groups):
        raise CheckpointError(
            f"{qweight.name} has shape {list(qweight.shape)} for {inputs} inputs of"
            f" {shown(own)} bits; expected {', '.join(map(str, BITS))} bits, packed without gaps"
        )
    count, outputs = scales.shape
    expected = {
        "qweight": (qweight, (packed // WORD, outputs)),
        "qzeros": (qzeros, (count, outputs * bits // WORD)),
    }
    check_parts(module, expected | ({"g_idx": (groups, (inputs,))} if groups else {}))
    integers = {part.dtype for part in (qweight, qzeros, *filter(None, [groups]))}
    if integers != {"int32"} or scales.dtype not in FLOATS:
        raise CheckpointError(
            f"{module} has integers of {', '.join(sorted(integers))} and scales of {scales.dtype};"
            " expected int32 and floats"
        )
    return Gptq(
        name=f"{module}.weight",
        dtype=scales.dtype,
        shape=(outputs, inputs),
        bits=bits,
        offset=OFFSETS[form],
        qweight=qweight,
        qzeros=qzeros,
        scales=scales,
        groups=groups,
    )
