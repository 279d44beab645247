"""Measures the error that quantisation causes in each matmul, and the range of its activations.

The error of a matmul is the root mean square of the difference of its result, relative to the
result's own. Its activations are those that calibration images cause in the float32 graph; without
images, the error of the weights alone is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from iblip.export.quantisation.blockwise import BlockwiseMatrix, floats_from_array
from iblip.export.quantisation.channelwise import ChannelwiseMatrix
from iblip.export.quantisation.formats import FORMATS, Format
from iblip.export.quantisation.matmuls import MatMul
from iblip.export.quantisation.options import Quantisation

ROWS = 1024
"""Rows of activations that a matmul is measured on, spread over all samples."""

STEPS = np.linspace(0.3, 1.0, 36)
"""Fractions of the greatest magnitude that are tried as the end of a static range."""


@dataclass
class Measurements:
    """What was measured of a component's matmuls, by the name of their weight.

    Attributes:
        quantisation: that was measured.
        samples: number of images; 0 if only weights were measured.
        errors: of each matmul.
        scales: of each matmul's activations, if they are static.
    """

    quantisation: Quantisation
    samples: int = 0
    errors: dict[str, float] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)

    def observe(self, matmul: MatMul, inputs: Sequence[npt.NDArray[Any]]) -> None:
        """Measures a matmul on its activations.

        If its weight is in two graphs, the greater error counts.
        """
        flat = [floats_from_array(x).reshape(-1, x.shape[-1]) for x in inputs]
        most = max(1, ROWS // len(flat))
        rows = [x[:: math.ceil(len(x) / most)] for x in flat if len(x)]
        if not rows:
            return
        if self.quantisation.activations == "static":
            scale = static_scale(torch.cat(rows), FORMATS[self.quantisation.format])
            self.scales[matmul.name] = max(scale, self.scales.get(matmul.name, 0.0))
        error = matmul_error(matmul, rows, self.quantisation, self.scales.get(matmul.name))
        self.errors[matmul.name] = max(error, self.errors.get(matmul.name, 0.0))

    def observe_weights(self, matmul: MatMul) -> None:
        """Measures a matmul's weights alone."""
        self.errors[matmul.name] = matmul_error(matmul, None, self.quantisation)

    @property
    def sensitive(self) -> tuple[str, ...]:
        """Names of the matmuls that stay more precise, the one with the largest error first."""
        count = math.ceil(self.quantisation.sensitive * len(self.errors))
        return tuple(sorted(self.errors, key=lambda name: -self.errors[name])[:count])

    def to_json(self) -> dict[str, Any]:
        """Returns what stays more precise, and the largest error of the others, JSON-ready."""
        quantisation = self.quantisation.to_json()
        if not self.errors:
            return {**quantisation, "sensitive": 0.0}  # none is
        worst = self.sensitive
        others = [error for name, error in self.errors.items() if name not in worst]
        return {
            **quantisation,
            "measured_on": f"{self.samples} images" if self.samples else "weights alone",
            "products": len(self.errors),
            "more_precise": {name: round(self.errors[name], 5) for name in worst},
            "greatest_error_of_others": round(max(others, default=0.0), 5),
        }


def matmul_error(
    matmul: MatMul,
    inputs: Sequence[torch.Tensor] | None,
    quantisation: Quantisation,
    scale: float | None = None,
) -> float:
    """Returns the error of a matmul, as the module defines it.

    Args:
        matmul: of the graph before it is quantised.
        inputs: its activations, float32 `[rows, in]` each; `None` measures the weights alone.
        quantisation: of its component.
        scale: of its activations, if they are static.
    """
    exact = None if inputs is None else torch.cat(list(inputs))
    quantised = exact
    if exact is not None and scale is not None:
        quantised = FORMATS[quantisation.format].quantise(exact, scale) * scale
    elif inputs is not None and quantisation.activations == "dynamic":
        quantised = torch.cat([_quantise_dynamically(x) for x in inputs])
    difference = size = 0.0
    for rows, quantised_rows in _rows_round_trip(matmul, quantisation):
        expected = rows if exact is None else exact @ rows.T
        actual = quantised_rows if quantised is None else quantised @ quantised_rows.T
        difference += float(torch.square(actual - expected).sum())
        size += float(torch.square(expected).sum())
    return math.sqrt(difference / size) if size else 0.0


def _rows_round_trip(
    matmul: MatMul, quantisation: Quantisation
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields rows of the matrix, before and after they are quantised."""
    if quantisation.activations == "float":
        yield from BlockwiseMatrix.from_recipe(matmul.recipe, quantisation).round_trip()
        return
    matrix = ChannelwiseMatrix(
        source=matmul.recipe.source, format=quantisation.format, dtype=matmul.recipe.dtype
    )
    for rows, numbers, scales in matrix.rows():
        yield rows, numbers * scales[:, None]


def _quantise_dynamically(values: torch.Tensor) -> torch.Tensor:
    """Rounds as `DynamicQuantizeLinear` does: to uint8 over the tensor's range, including 0."""
    lowest, highest = values.amin().clamp(max=0), values.amax().clamp(min=0)
    scale = (highest - lowest) / 255
    if scale == 0:
        return values
    zero = (-lowest / scale).round()
    return ((values / scale + zero).round().clamp(0, 255) - zero) * scale


def static_scale(values: torch.Tensor, format_: Format) -> float:
    """Returns the scale that quantises `values` with the smallest mean squared error."""
    largest = float(values.abs().max())
    if largest == 0:
        return 1.0
    errors = {}
    for step in STEPS:
        scale = largest * float(step) / format_.largest
        rounded = format_.quantise(values, scale) * scale
        errors[scale] = float(torch.square(rounded - values).sum())
    return min(errors, key=lambda scale: errors[scale])
