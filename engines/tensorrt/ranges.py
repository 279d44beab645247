"""The shapes that each profile of a plan accepts, and the profile that a run is given to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iblip.engines.tensorrt.profile import Shape
from iblip.export.artifact.contract import Contract
from iblip.export.errors import InputError

Shapes = Mapping[str, Shape]
"""Shapes of a run's inputs, by name."""

FLAGS: Mapping[str, str] = {
    "batch": "--max-batch",
    "instruction": "--max-instruction",
    "sequence": "--max-length",
    "past": "--max-length",
    "total": "--max-length",
    "source": "--max-length",
}
"""A dynamic axis to the option of `iblip build` that raises its limit."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """One optimisation profile of a plan, as the plan has it.

    Attributes:
        index: the profile's index in the plan.
        min, max: the smallest and the largest shape of every input.
    """

    index: int
    min: Shapes
    max: Shapes

    def holds(self, shapes: Shapes) -> bool:
        """Whether every axis of every input lies within the profile's limits."""
        return all(
            low <= size <= high
            for name, shape in shapes.items()
            for low, size, high in zip(self.min[name], shape, self.max[name], strict=True)
        )

    @property
    def volume(self) -> int:
        """Elements of its largest inputs together. Less volume is tuned for smaller runs."""
        return sum(math.prod(shape) for shape in self.max.values())


def ranges_of_engine(engine: Any, contract: Contract) -> tuple[Range, ...]:
    """Every profile of an `ICudaEngine`, for the inputs of its contract."""
    ranges = []
    for index in range(engine.num_optimization_profiles):
        shapes = {
            spec.name: [tuple(shape) for shape in engine.get_tensor_profile_shape(spec.name, index)]
            for spec in contract.inputs
        }
        ranges.append(
            Range(
                index=index,
                min={name: smallest for name, (smallest, _, _) in shapes.items()},
                max={name: largest for name, (_, _, largest) in shapes.items()},
            )
        )
    return tuple(ranges)


def choose_range(ranges: Sequence[Range], shapes: Shapes, contract: Contract) -> Range:
    """The smallest profile that holds a run's inputs.

    Args:
        ranges: of the plan.
        shapes: of the run's inputs, which fit the contract.
        contract: of the graph; names the axes.

    Raises:
        InputError: no profile holds them, with the limits and the options that raise them.
    """
    fitting = [candidate for candidate in ranges if candidate.holds(shapes)]
    if fitting:
        return min(fitting, key=lambda candidate: candidate.volume)
    sizes = {axis: size for axis, size in _axes(contract, shapes).items() if isinstance(axis, str)}
    limits = [_limits(each, contract) for each in ranges]
    above = [axis for axis, size in sizes.items() if all(size > limit[axis][1] for limit in limits)]
    flags = dict.fromkeys(FLAGS[axis] for axis in above if axis in FLAGS)
    remedy = f" Build it with a larger {' and '.join(flags)}." if flags else ""
    raise InputError(
        f"a run of {_format_sizes(sizes)} is outside what the plan was built for: "
        f"{'; or '.join(_format_limits(limit) for limit in limits)}.{remedy}"
    )


def _axes(contract: Contract, shapes: Shapes) -> dict[int | str, int]:
    return {
        axis: size
        for spec in contract.inputs
        for axis, size in zip(spec.axes, shapes[spec.name], strict=True)
    }


def _limits(profile: Range, contract: Contract) -> dict[int | str, tuple[int, int]]:
    smallest, largest = _axes(contract, profile.min), _axes(contract, profile.max)
    return {axis: (low, largest[axis]) for axis, low in smallest.items() if isinstance(axis, str)}


def _format_sizes(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in sizes.items())


def _format_limits(limits: Mapping[int | str, tuple[int, int]]) -> str:
    return ", ".join(f"{axis} {low} to {high}" for axis, (low, high) in limits.items())
