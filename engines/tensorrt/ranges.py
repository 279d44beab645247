"""The shapes that a plan takes, profile by profile, and which profile a run is given to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iblip.engines.tensorrt.profile import Shape
from iblip.export.artifact.contract import Contract
from iblip.export.errors import InputError

Shapes = Mapping[str, Shape]
"""Of a run's inputs, by name."""

FLAGS: Mapping[str, str] = {
    "batch": "--max-batch",
    "instruction": "--max-instruction",
    "sequence": "--max-length",
    "past": "--max-length",
    "total": "--max-length",
    "source": "--max-length",
}
"""A dynamic axis to the option of `export build` that raises its limit."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """One optimisation profile of a plan, as the plan has it.

    Attributes:
        index: of the profile.
        least, most: the smallest and the largest shape of every input.
    """

    index: int
    least: Shapes
    most: Shapes

    def holds(self, shapes: Shapes) -> bool:
        """Whether every input's every axis lies within its limits."""
        return all(
            low <= size <= high
            for name, shape in shapes.items()
            for low, size, high in zip(self.least[name], shape, self.most[name], strict=True)
        )

    @property
    def volume(self) -> int:
        """Elements of its largest inputs together: the smaller, the better it is tuned for few."""
        return sum(math.prod(shape) for shape in self.most.values())


def ranges_of_engine(engine: Any, contract: Contract) -> tuple[Range, ...]:
    """Every profile of an `ICudaEngine`, for the inputs of its contract."""
    found = []
    for index in range(engine.num_optimization_profiles):
        shapes = {
            spec.name: [tuple(shape) for shape in engine.get_tensor_profile_shape(spec.name, index)]
            for spec in contract.inputs
        }
        found.append(
            Range(
                index=index,
                least={name: least for name, (least, _, _) in shapes.items()},
                most={name: most for name, (_, _, most) in shapes.items()},
            )
        )
    return tuple(found)


def choose_range(ranges: Sequence[Range], shapes: Shapes, contract: Contract) -> Range:
    """The smallest profile that holds a run's inputs.

    Args:
        ranges: of the plan.
        shapes: of the run's inputs, which fit the contract.
        contract: of the graph; names the axes.

    Raises:
        InputError: no profile holds them, with the limits and the options that raise them.
    """
    fitting = [found for found in ranges if found.holds(shapes)]
    if fitting:
        return min(fitting, key=lambda found: found.volume)
    asked = {axis: size for axis, size in _axes(contract, shapes).items() if isinstance(axis, str)}
    limits = [_limits(found, contract) for found in ranges]
    above = [axis for axis, size in asked.items() if all(size > limit[axis][1] for limit in limits)]
    flags = dict.fromkeys(FLAGS[axis] for axis in above if axis in FLAGS)
    remedy = f" Build it with a larger {' and '.join(flags)}." if flags else ""
    raise InputError(
        f"a run of {_words(asked)} is not within what the plan was built for: "
        f"{'; or '.join(_spans(limit) for limit in limits)}.{remedy}"
    )


def _axes(contract: Contract, shapes: Shapes) -> dict[int | str, int]:
    return {
        axis: size
        for spec in contract.inputs
        for axis, size in zip(spec.axes, shapes[spec.name], strict=True)
    }


def _limits(found: Range, contract: Contract) -> dict[int | str, tuple[int, int]]:
    least, most = _axes(contract, found.least), _axes(contract, found.most)
    return {axis: (low, most[axis]) for axis, low in least.items() if isinstance(axis, str)}


def _words(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in sizes.items())


def _spans(limits: Mapping[int | str, tuple[int, int]]) -> str:
    return ", ".join(f"{axis} {low} to {high}" for axis, (low, high) in limits.items())
