"""The sizes that a plan is built for, derived from a graph's contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from export.contract import Contract, TensorSpec
from export.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Span:
    """The sizes of one dynamic axis, in elements.

    Attributes:
        least: the smallest that will be asked for.
        usual: what the plan is tuned for.
        most: the largest that will be asked for.

    Raises:
        OptionError: they are not in that order, or not positive.
    """

    least: int
    usual: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.usual <= self.most:
            raise OptionError(
                f"a profile of {self.least}, {self.usual}, {self.most} is not in order; "
                "wanted 1 <= least <= usual <= most"
            )


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


def profile_from_contract(contract: Contract, most: Mapping[str, int]) -> Profile:
    """A span for every dynamic axis of a contract's inputs, tuned for a quarter of its largest.

    Args:
        contract: of the graph.
        most: the largest size of each dynamic axis, by name, in elements.

    Raises:
        OptionError: an axis has no largest size.
    """
    axes = {axis: spec for spec in contract.inputs for axis in spec.axes if isinstance(axis, str)}
    missing = [f"{axis!r} of {spec}" for axis, spec in axes.items() if axis not in most]
    if missing:
        raise OptionError(f"there is no largest size for axis {', '.join(missing)}")
    spans = {axis: Span(least=1, usual=max(1, most[axis] // 4), most=most[axis]) for axis in axes}
    return Profile(axes=spans)
