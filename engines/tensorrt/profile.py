"""The sizes that a plan is built for, by the names of a graph's dynamic axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from iblip.export.artifact.contract import Contract, TensorSpec
from iblip.export.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Span:
    """The sizes of one dynamic axis, in elements.

    Attributes:
        min: the smallest size that a run may have; 0 for `past` only, which is empty in a prefill.
        opt: the size that the plan is tuned for.
        max: the largest size that a run may have.

    Raises:
        OptionError: the sizes are negative or not in ascending order.
    """

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 0 <= self.min <= self.opt <= self.max:
            raise OptionError(
                f"a profile of {self.min}, {self.opt}, {self.max} is not in order; "
                "expected 0 <= min <= opt <= max"
            )

    @classmethod
    def from_word(cls, word: str) -> Self:
        """Reads `1:4:8` (min, opt, max), or `4`: that size alone.

        Raises:
            OptionError: the word is neither, or its sizes are not in order.
        """
        parts = word.split(":")
        if len(parts) not in (1, 3) or not all(part.isdecimal() for part in parts):
            raise OptionError(
                f"{word!r} is not a range of sizes; expected min:opt:max, or one size"
            )
        smallest, opt, largest = map(int, parts * 3 if len(parts) == 1 else parts)
        return cls(min=smallest, opt=opt, max=largest)


Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One optimisation profile: a span for every dynamic axis of a graph, by the axis's name."""

    axes: Mapping[str, Span]

    def shapes(self, spec: TensorSpec) -> tuple[Shape, Shape, Shape]:
        """The min, opt and max shape of one input.

        Raises:
            OptionError: the profile has no span for one of its dynamic axes.
        """
        spans = [self._span(axis, spec) for axis in spec.axes]
        return (
            tuple(span.min for span in spans),
            tuple(span.opt for span in spans),
            tuple(span.max for span in spans),
        )

    def all_shapes(self, contract: Contract) -> dict[str, tuple[Shape, Shape, Shape]]:
        """`shapes` of every input of a graph, by name. Errors as there."""
        return {spec.name: self.shapes(spec) for spec in contract.inputs}

    def _span(self, axis: int | str, spec: TensorSpec) -> Span:
        if isinstance(axis, int):
            return Span(min=axis, opt=axis, max=axis)
        if axis not in self.axes:
            has = ", ".join(self.axes) or "none"
            raise OptionError(f"the profile has no sizes for axis {axis!r} of {spec}; it has {has}")
        return self.axes[axis]

    def to_json(self) -> dict[str, list[int]]:
        """`{axis: [min, opt, max]}`."""
        return {name: [span.min, span.opt, span.max] for name, span in self.axes.items()}


def profile_from_json(data: Mapping[str, Sequence[int]]) -> Profile:
    """The inverse of `Profile.to_json`.

    Raises:
        OptionError: sizes are not in order.
    """
    axes = {
        name: Span(min=smallest, opt=opt, max=largest)
        for name, (smallest, opt, largest) in data.items()
    }
    return Profile(axes=axes)
