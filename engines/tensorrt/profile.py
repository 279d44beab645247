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
        least: the smallest that will be asked for; 0 only of `past`, which a prefill has none of.
        usual: what the plan is tuned for.
        most: the largest that will be asked for.

    Raises:
        OptionError: they are not in that order, or negative.
    """

    least: int
    usual: int
    most: int

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.usual <= self.most:
            raise OptionError(
                f"a profile of {self.least}, {self.usual}, {self.most} is not in order; "
                "wanted 0 <= least <= usual <= most"
            )

    @classmethod
    def from_word(cls, word: str) -> Self:
        """Reads `1:4:8` (least, usual, most), or `4`: that size alone.

        Raises:
            OptionError: it is neither, or not in order.
        """
        parts = word.split(":")
        if len(parts) not in (1, 3) or not all(part.isdecimal() for part in parts):
            raise OptionError(f"{word!r} is no range of sizes; wanted min:opt:max, or one size")
        least, usual, most = map(int, parts * (4 - len(parts)) if len(parts) == 1 else parts)
        return cls(least=least, usual=usual, most=most)


Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One optimisation profile: a span for every dynamic axis of a graph, by the axis's name."""

    axes: Mapping[str, Span]

    def shapes(self, spec: TensorSpec) -> tuple[Shape, Shape, Shape]:
        """The least, the usual and the largest shape of one input.

        Raises:
            OptionError: the profile has no span for one of its dynamic axes.
        """
        spans = [self._span(axis, spec) for axis in spec.axes]
        return (
            tuple(span.least for span in spans),
            tuple(span.usual for span in spans),
            tuple(span.most for span in spans),
        )

    def all_shapes(self, contract: Contract) -> dict[str, tuple[Shape, Shape, Shape]]:
        """`shapes` of every input of a graph, by name. Errors as there."""
        return {spec.name: self.shapes(spec) for spec in contract.inputs}

    def _span(self, axis: int | str, spec: TensorSpec) -> Span:
        if isinstance(axis, int):
            return Span(least=axis, usual=axis, most=axis)
        if axis not in self.axes:
            has = ", ".join(self.axes) or "none"
            raise OptionError(f"the profile has no sizes for axis {axis!r} of {spec}; it has {has}")
        return self.axes[axis]

    def to_json(self) -> dict[str, list[int]]:
        """`{axis: [least, usual, most]}`."""
        return {name: [span.least, span.usual, span.most] for name, span in self.axes.items()}


def profile_from_json(data: Mapping[str, Sequence[int]]) -> Profile:
    """The inverse of `Profile.to_json`.

    Raises:
        OptionError: sizes are not in order.
    """
    axes = {
        name: Span(least=least, usual=usual, most=most)
        for name, (least, usual, most) in data.items()
    }
    return Profile(axes=axes)
