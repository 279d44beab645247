"""Profiles from what the caller says of requests: the largest sizes, and what is usual.

The largest sizes are what is served: configs, the client's limits and refusals have the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from iblip.engines.tensorrt.profile import Profile, Span
from iblip.engines.tensorrt.ranges import FLAGS
from iblip.export.artifact.contract import Contract
from iblip.export.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """What the caller says of the sizes that plans are built for.

    Attributes:
        most: the largest size of each axis, a key of `FLAGS`: what is served.
        usual: the size of an axis that most requests have, where the caller knows it; otherwise
            a quarter of the largest.
        profiles: of each profile, the spans of some axes; the others have all sizes. None is one
            profile of all sizes.

    Raises:
        OptionError: an axis that is not in `most`, a size above it, or no profile that holds every
            request: then some would find none.
    """

    most: Mapping[str, int]
    usual: Mapping[str, int] = field(default_factory=dict)
    profiles: tuple[Mapping[str, Span], ...] = ()

    def __post_init__(self) -> None:
        for axis, size in self.usual.items():
            if axis not in self.most:
                raise OptionError(f"--opt-{axis}: this build has no {axis}. Leave it out.")
            if not 1 <= size <= self.most[axis]:
                raise OptionError(
                    f"--opt-{axis} is {size}; wanted 1 to {self.most[axis]}, "
                    f"which {FLAGS[axis]} says"
                )
        for profile in self.profiles:
            for axis, span in profile.items():
                self._check(axis, span)
        if self.profiles and not any(map(self._holds_all, self.profiles)):
            sizes = ",".join(f"{axis}=1:{self._usual(axis)}:{n}" for axis, n in self.most.items())
            raise OptionError(
                "there is no --profile that holds every request. Let one have all sizes "
                f"(--profile {sizes}), beside those that are tuned for some."
            )

    def _check(self, axis: str, span: Span) -> None:
        if axis not in self.most:
            near = get_close_matches(axis, self.most, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise OptionError(f"--profile: no axis {axis!r}.{hint} Axes: {', '.join(self.most)}")
        if span.least < 1:
            raise OptionError(f"--profile: {axis} begins at {span.least}; wanted 1 or more")
        if span.most > self.most[axis]:
            raise OptionError(
                f"--profile: {axis} goes up to {span.most}, and requests to {self.most[axis]}. "
                f"Raise {FLAGS[axis]}, or lower it."
            )

    def _holds_all(self, profile: Mapping[str, Span]) -> bool:
        return all(
            span.least == 1 and span.most == self.most[axis] for axis, span in profile.items()
        )

    def _usual(self, axis: str) -> int:
        return self.usual.get(axis, max(1, self.most[axis] // 4))

    def of_contract(self, contract: Contract) -> tuple[Profile, ...]:
        """The profiles of a graph: a span for every dynamic axis of its inputs.

        Axes that the graph does not have are left out, and profiles that are then alike are one.

        Args:
            contract: of the graph.

        Raises:
            OptionError: an axis has no largest size.
        """
        axes = {axis: s for s in contract.inputs for axis in s.axes if isinstance(axis, str)}
        missing = [f"{axis!r} of {spec}" for axis, spec in axes.items() if axis not in self.most]
        if missing:
            raise OptionError(f"there is no largest size for axis {', '.join(missing)}")
        made = [
            {axis: given.get(axis) or self._span(axis) for axis in axes}
            for given in self.profiles or ({},)
        ]
        return tuple(Profile(axes=spans) for spans in _unlike(made))

    def _span(self, axis: str) -> Span:
        return Span(least=1, usual=self._usual(axis), most=self.most[axis])


def _unlike(made: Sequence[dict[str, Span]]) -> list[dict[str, Span]]:
    return [spans for index, spans in enumerate(made) if spans not in made[:index]]


def profile_from_word(word: str) -> dict[str, Span]:
    """Reads `batch=1:4:8,instruction=1:32:128`, the value of `--profile`.

    Raises:
        OptionError: a part is not `axis=min:opt:max`, or an axis is named twice.
    """
    spans: dict[str, Span] = {}
    for part in word.split(","):
        axis, equals, sizes = part.strip().partition("=")
        if not equals or axis in spans:
            fault = f"{axis} is named twice" if equals else f"{part!r} has no '='"
            raise OptionError(f"--profile {word}: {fault}; wanted axis=min:opt:max,…")
        spans[axis] = Span.from_word(sizes)
    return spans


def decoder_profiles(contract: Contract, *, slots: int, positions: int) -> tuple[Profile, ...]:
    """The profiles of a language model's graph, of whatever architecture.

    A decoder has two: prefill, of one prompt as a rule, without a past; and decode, of one token a
    sequence behind a past. The other graphs have one.

    Args:
        contract: of the graph: axes `batch`, `sequence`, `past`, `total` and `source`.
        slots: sequences at once.
        positions: of a sequence.
    """
    few, usual = max(1, slots // 4), max(1, positions // 4)
    batch = Span(least=1, usual=few, most=slots)
    length = Span(least=1, usual=usual, most=positions)
    axes = dict.fromkeys(a for spec in contract.inputs for a in spec.axes if isinstance(a, str))
    if "past" not in axes:
        return (Profile(axes={axis: batch if axis == "batch" else length for axis in axes}),)
    spans = {"batch": batch, "sequence": length, "total": length, "source": length}
    prefill = {
        **spans,
        "batch": Span(least=1, usual=1, most=slots),
        "past": Span(least=0, usual=0, most=0),
    }
    last = positions - 1
    decode = {
        **spans,
        "sequence": Span(least=1, usual=1, most=1),
        "past": Span(least=1, usual=min(usual, last), most=last),
        "total": Span(least=2, usual=min(usual, last) + 1, most=positions),
    }
    return tuple(Profile(axes={axis: made[axis] for axis in axes}) for made in (prefill, decode))
