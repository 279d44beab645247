"""Optimisation profiles from the request sizes that the caller names: the largest and the usual.

The largest sizes are also the served limits: the Triton configs, the client and every refusal use
the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from iblip.engines.tensorrt.profile import Profile, Span
from iblip.engines.tensorrt.ranges import FLAGS
from iblip.export.artifact.contract import Contract
from iblip.export.errors import OptionError
from iblip.export.messages import did_you_mean


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """The sizes that plans are built for.

    Attributes:
        max: the largest size of each axis, which is what is served. Axes are keys of `FLAGS`.
        opt: the size of an axis that most requests have, where the caller knows it; otherwise a
            quarter of the largest.
        profiles: for each profile, the spans of some axes; its other axes take all sizes. Empty
            means one profile of all sizes.

    Raises:
        OptionError: an axis is not in `max`, a size is above its maximum, or no profile holds
            every request.
    """

    max: Mapping[str, int]
    opt: Mapping[str, int] = field(default_factory=dict)
    profiles: tuple[Mapping[str, Span], ...] = ()

    def __post_init__(self) -> None:
        for axis, size in self.opt.items():
            if axis not in self.max:
                raise OptionError(f"--opt-{axis}: this build has no {axis}. Leave it out.")
            if not 1 <= size <= self.max[axis]:
                raise OptionError(
                    f"--opt-{axis} is {size}; expected 1 to {self.max[axis]}, "
                    f"the limit of {FLAGS[axis]}"
                )
        for profile in self.profiles:
            for axis, span in profile.items():
                self._check(axis, span)
        if self.profiles and not any(map(self._holds_all, self.profiles)):
            sizes = ",".join(f"{axis}=1:{self._opt(axis)}:{n}" for axis, n in self.max.items())
            raise OptionError(
                "there is no --profile that holds every request. Add one that takes all sizes "
                f"(--profile {sizes}) to those that are tuned for some."
            )

    def _check(self, axis: str, span: Span) -> None:
        if axis not in self.max:
            hint = did_you_mean(axis, self.max)
            raise OptionError(f"--profile: no axis {axis!r}.{hint} Axes: {', '.join(self.max)}")
        if span.min < 1:
            raise OptionError(f"--profile: {axis} begins at {span.min}; expected 1 or more")
        if span.max > self.max[axis]:
            raise OptionError(
                f"--profile: {axis} goes up to {span.max}, and requests to {self.max[axis]}. "
                f"Raise {FLAGS[axis]}, or lower the profile's size."
            )

    def _holds_all(self, profile: Mapping[str, Span]) -> bool:
        return all(span.min == 1 and span.max == self.max[axis] for axis, span in profile.items())

    def _opt(self, axis: str) -> int:
        return self.opt.get(axis, max(1, self.max[axis] // 4))

    def of_contract(self, contract: Contract) -> tuple[Profile, ...]:
        """The profiles of a graph: a span for every dynamic axis of its inputs.

        Axes that the graph does not have are left out, and profiles that become equal are merged.

        Args:
            contract: of the graph.

        Raises:
            OptionError: an axis has no largest size.
        """
        axes = {axis: s for s in contract.inputs for axis in s.axes if isinstance(axis, str)}
        missing = [f"{axis!r} of {spec}" for axis, spec in axes.items() if axis not in self.max]
        if missing:
            raise OptionError(f"there is no largest size for axis {', '.join(missing)}")
        candidates = [
            {axis: given.get(axis) or self._span(axis) for axis in axes}
            for given in self.profiles or ({},)
        ]
        return tuple(Profile(axes=spans) for spans in _without_repeats(candidates))

    def _span(self, axis: str) -> Span:
        return Span(min=1, opt=self._opt(axis), max=self.max[axis])


def _without_repeats(profiles: Sequence[dict[str, Span]]) -> list[dict[str, Span]]:
    return [spans for index, spans in enumerate(profiles) if spans not in profiles[:index]]


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
            raise OptionError(f"--profile {word}: {fault}; expected axis=min:opt:max,…")
        spans[axis] = Span.from_word(sizes)
    return spans


def decoder_profiles(contract: Contract, *, slots: int, positions: int) -> tuple[Profile, ...]:
    """The profiles of a language model's graph, of any architecture.

    A decoder has two: prefill, usually of one prompt, without a past; and decode, of one token for
    each sequence, with a past. Every other graph has one.

    Args:
        contract: of the graph: axes `batch`, `sequence`, `past`, `total` and `source`.
        slots: how many sequences run at once.
        positions: how many positions a sequence may have.
    """
    opt = max(1, positions // 4)
    batch = Span(min=1, opt=max(1, slots // 4), max=slots)
    length = Span(min=1, opt=opt, max=positions)
    axes = dict.fromkeys(a for spec in contract.inputs for a in spec.axes if isinstance(a, str))
    if "past" not in axes:
        return (Profile(axes={axis: batch if axis == "batch" else length for axis in axes}),)
    spans = {"batch": batch, "sequence": length, "total": length, "source": length}
    prefill = {
        **spans,
        "batch": Span(min=1, opt=1, max=slots),
        "past": Span(min=0, opt=0, max=0),
    }
    last = positions - 1
    decode = {
        **spans,
        "sequence": Span(min=1, opt=1, max=1),
        "past": Span(min=1, opt=min(opt, last), max=last),
        "total": Span(min=2, opt=min(opt, last) + 1, max=positions),
    }
    return tuple(Profile(axes={axis: phase[axis] for axis in axes}) for phase in (prefill, decode))
