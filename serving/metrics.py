"""Families of metrics: what Prometheus reads of a status, whoever exposes it.

Triton exposes those of the engine (`steps/metrics.py`), the supervisor and the gateway their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from typing import Any, Generic, Literal, TypeVar

from iblip.engines.language_model.histograms import Histogram

Kind = Literal["counter", "gauge", "histogram"]

S = TypeVar("S")
"""A status."""


@dataclass(frozen=True, kw_only=True)
class Family(Generic[S]):
    """The metrics of one name.

    Attributes:
        kind: a counter only grows.
        help: the description that Prometheus shows.
        read: the value in a status; or the values by the value of `label`.
        label: the label that distinguishes its series, if there are several.
    """

    kind: Kind
    help: str
    read: Callable[[S], float | Mapping[Any, int] | Histogram]
    label: str | None = None


TEXT = "text/plain; version=0.0.4"
"""The type of `text_from_status`."""


def text_from_status(families: Mapping[str, Family[S]], status: S) -> str:
    """A status in Prometheus' text format, without labels of its own."""
    lines = (
        line
        for name, family in families.items()
        for line in (
            f"# HELP {name} {family.help}",
            f"# TYPE {name} {family.kind}",
            *_series(name, family, family.read(status)),
        )
    )
    return "".join(f"{line}\n" for line in lines)


def _series(
    name: str, family: Family[Any], value: float | Mapping[Any, int] | Histogram
) -> Iterator[str]:
    if isinstance(value, Histogram):
        counts = list(accumulate(value.counts))
        for bound, count in zip((*value.bounds, inf), counts, strict=True):
            edge = "+Inf" if bound == inf else f"{bound:g}"
            yield f'{name}_bucket{{le="{edge}"}} {count}'
        yield f"{name}_sum {value.total:.6f}"
        yield f"{name}_count {counts[-1]}"
    elif isinstance(value, Mapping):
        for key in sorted(value):
            yield f'{name}{{{family.label}="{key}"}} {value[key]}'
    else:
        yield f"{name} {value}"
