"""How much each product's result moves when it is quantised, and how large its inputs are.

The error of a product is the root mean square of what it gives too much or too little, as a share
of what it gives: with the inputs that calibration images make in the float32 graph, or without any,
the same of its weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from iblip.export.quantisation.blocks import blocks_of, floats_from_array
from iblip.export.quantisation.channels import Channels
from iblip.export.quantisation.formats import FORMATS, Format
from iblip.export.quantisation.options import Quantisation
from iblip.export.quantisation.products import Product

ROWS = 1024
"""Inputs of a product that are looked at, spread over all samples."""

STEPS = np.linspace(0.3, 1.0, 36)
"""Shares of the greatest magnitude that are tried as the end of a static range."""


@dataclass
class Measurements:
    """What was found of a component's products, by the name of their weight.

    Attributes:
        quantisation: what was measured.
        samples: images that it was measured on; 0 where only weights were looked at.
        errors: of each product.
        scales: of each product's input, for static activations.
    """

    quantisation: Quantisation
    samples: int = 0
    errors: dict[str, float] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)

    def observe(self, product: Product, inputs: Sequence[npt.NDArray[Any]]) -> None:
        """Measures a product; one whose weight is in two graphs counts with its greater error."""
        flat = [floats_from_array(x).reshape(-1, x.shape[-1]) for x in inputs]
        most = max(1, ROWS // len(flat))
        rows = [x[:: math.ceil(len(x) / most)] for x in flat if len(x)]
        if not rows:
            return
        if self.quantisation.activations == "static":
            scale = static_scale(torch.cat(rows), FORMATS[self.quantisation.format])
            self.scales[product.name] = max(scale, self.scales.get(product.name, 0.0))
        error = product_error(product, rows, self.quantisation, self.scales.get(product.name))
        self.errors[product.name] = max(error, self.errors.get(product.name, 0.0))

    def look_at(self, product: Product) -> None:
        """Measures a product's weights alone."""
        rows = [torch.eye(1)]
        self.errors[product.name] = product_error(product, rows, self.quantisation)

    @property
    def sensitive(self) -> tuple[str, ...]:
        """The products that stay more precise, the worst first."""
        count = math.ceil(self.quantisation.sensitive * len(self.errors))
        return tuple(sorted(self.errors, key=lambda name: -self.errors[name])[:count])

    def to_json(self) -> dict[str, Any]:
        """JSON-ready: what stays more precise, and the worst of the others."""
        made = self.quantisation.to_json()
        if not self.errors:
            return {**made, "sensitive": 0.0}  # none is
        worst = self.sensitive
        others = [error for name, error in self.errors.items() if name not in worst]
        return {
            **made,
            "measured_on": f"{self.samples} images" if self.samples else "weights alone",
            "products": len(self.errors),
            "more_precise": {name: round(self.errors[name], 5) for name in worst},
            "greatest_error_of_others": round(max(others, default=0.0), 5),
        }


def product_error(
    product: Product,
    inputs: Sequence[torch.Tensor],
    quantisation: Quantisation,
    scale: float | None = None,
) -> float:
    """See the module.

    Args:
        product: of which nothing has been changed yet.
        inputs: `[rows, in]` each; one of 1 x 1 stands for weights alone.
        quantisation: of its component.
        scale: of its input, for static activations.
    """
    weights_alone = inputs[0].shape == (1, 1)
    exact = torch.cat(list(inputs))
    rounded = exact
    if scale is not None:
        rounded = FORMATS[quantisation.format].rounded(exact, scale) * scale
    elif quantisation.activations == "dynamic" and not weights_alone:
        rounded = torch.cat([_rounded(x) for x in inputs])
    wrong = right = 0.0
    for rows, found in _quantised(product, quantisation):
        wanted = rows if weights_alone else exact @ rows.T
        made = found if weights_alone else rounded @ found.T
        wrong += float(torch.square(made - wanted).sum())
        right += float(torch.square(wanted).sum())
    return math.sqrt(wrong / right) if right else 0.0


def _quantised(
    product: Product, quantisation: Quantisation
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rows of the matrix, and what they are once they are quantised."""
    if quantisation.activations == "float":
        yield from blocks_of(product.recipe.source, quantisation).compared()
        return
    channels = Channels(
        source=product.recipe.source, format=quantisation.format, dtype=product.recipe.dtype
    )
    for rows, numbers, scales in channels.rows():
        yield rows, numbers * scales[:, None]


def _rounded(values: torch.Tensor) -> torch.Tensor:
    """As `DynamicQuantizeLinear` does: uint8 over the range of the tensor, which has 0 in it."""
    lowest, highest = values.amin().clamp(max=0), values.amax().clamp(min=0)
    scale = (highest - lowest) / 255
    if scale == 0:
        return values
    zero = (-lowest / scale).round()
    return ((values / scale + zero).round().clamp(0, 255) - zero) * scale


def static_scale(values: torch.Tensor, numbers: Format) -> float:
    """The scale of such numbers that moves these values least, in the mean of squares."""
    most = float(values.abs().max())
    if most == 0:
        return 1.0
    errors = {}
    for share in STEPS:
        scale = most * float(share) / numbers.most
        rounded = numbers.rounded(values, scale) * scale
        errors[scale] = float(torch.square(rounded - values).sum())
    return min(errors, key=lambda scale: errors[scale])
