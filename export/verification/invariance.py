"""Whether a row's numbers depend on what it is computed beside.

Batch: the same row alone, and as the last of a batch. Padding: the same row at its own length, with
masked positions behind it, and beside a row that is as long as that. A decoder over slots is padded
by room behind its text, which holds junk; what it adds is one token, as it decodes any batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from iblip.export.artifact.contract import TensorSpec
from iblip.export.artifact.verified_graph import OnnxGraph
from iblip.export.graph.onnxruntime_values import run
from iblip.export.verification.feeds import PAST
from iblip.export.verification.slots import JUNK

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]

BATCHES = (2, 5, 8)
"""Batch sizes that a row is put into."""

PADDING = (1, 7, 24)
"""Positions behind a row, as far as there is room."""

PADDED_AXES: Mapping[str, tuple[str, ...]] = {
    "qformer/model": ("instruction",),
    "language_model/encoder": ("sequence",),
    "language_model/decoder": ("sequence", "total", "source"),
    "language_model/batched_decoder": ("capacity", "source_capacity"),
}
"""By graph: the axes that padding makes longer."""

SLOTS = "batched_decoder"


@dataclass(frozen=True, kw_only=True)
class Variation:
    """What changed of one row. True where it is no more than the limit.

    Attributes:
        graph: `component/graph`.
        beside: what it was computed beside, for people.
        difference: the largest of any output, over that output's largest magnitude.
        limit: of the difference.
    """

    graph: str
    beside: str
    difference: float
    limit: float

    def __bool__(self) -> bool:
        return self.difference <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Every field, JSON-ready."""
        return {**asdict(self), "passed": bool(self)}


class Row:
    """One row of one graph, computed alone.

    Args:
        graph: what computes it.
        session: of the graph.
        feed: of the row, a batch of 1; of a decoder over slots, of its prompt.
    """

    def __init__(self, graph: OnnxGraph, session: Any, feed: Feed) -> None:
        self._graph, self._session = graph, session
        self._feed = self._step(feed) if graph.name == SLOTS else feed
        self._alone = self._run(self._feed)

    @property
    def title(self) -> str:
        """`component/graph`."""
        return f"{self._graph.component}/{self._graph.name}"

    def in_batches(self, limit: float) -> Iterator[Variation]:
        """The row as the last of each of `BATCHES`."""
        for batch in BATCHES:
            found = self._run(self._among(batch))
            yield self._variation(f"in a batch of {batch}", _last(found), limit)

    def padded(self, limit: float, room: int) -> Iterator[Variation]:
        """The row with padding behind it, and beside a longer one; at most `room` positions."""
        for extra in PADDING:
            if extra <= room and self.title in PADDED_AXES:
                longer = self._padded(self._feed, extra)
                found = self._cut(self._run(longer))
                yield self._variation(f"with {extra} positions of padding", found, limit)
                found = self._cut(self._run(self._beside(longer, extra)))
                yield self._variation(f"beside a row {extra} positions longer", found, limit)

    def _run(self, feed: Feed) -> dict[str, Array]:
        names = [spec.name for spec in self._graph.contract.outputs]
        return run(self._session, names, feed)

    def _step(self, feed: Feed) -> Feed:
        """What follows the prompt of `feed`: one token in every slot, which has room for it."""
        length = feed["inputs_embeds"].shape[1]
        roomy = {
            name: np.pad(array, ((0, 0), (0, 0), (0, 1), (0, 0)))
            if name.startswith(PAST)
            else array
            for name, array in feed.items()
        }
        present = {name.replace("present", "past"): a for name, a in self._run(roomy).items()}
        step = {name: present.get(name, array) for name, array in feed.items()}
        step["inputs_embeds"] = feed["inputs_embeds"][:, -1:]
        step["position_ids"] = np.full((1, 1), length, np.int64)
        if "key_positions" in step:
            step["key_positions"] = np.arange(length + 1)
        return step

    def _among(self, batch: int) -> Feed:
        """The row behind `batch - 1` others of the same shape and other content."""
        feed = dict(self._feed)
        for spec in self._with_batch():
            row = feed[spec.name]
            feed[spec.name] = np.concatenate([*(_other(row, i) for i in range(1, batch)), row])
        return feed

    def _padded(self, feed: Feed, extra: int) -> dict[str, Array]:
        longer = dict(feed)
        axes = PADDED_AXES[self.title]
        for spec in self._graph.contract.inputs:
            pad = [(0, extra if axis in axes else 0) for axis in spec.axes]
            fill = 0 if longer[spec.name].dtype.kind in "iu" else JUNK
            longer[spec.name] = np.pad(longer[spec.name], pad, constant_values=fill)
        return longer

    def _beside(self, longer: dict[str, Array], extra: int) -> Feed:
        """The padded row, and behind it one that has text where the first has padding."""
        feed = dict(longer)
        for spec in self._with_batch():
            row = longer[spec.name]
            other = np.ones_like(row) if spec.name.endswith("mask") else _other(row, 1)
            if spec.name in ("position_ids", "source_lengths") and self._graph.name == SLOTS:
                other = other + extra
            feed[spec.name] = np.concatenate([row, other])
        if "key_positions" in feed:
            feed["key_positions"] = np.arange(int(feed["position_ids"].max()) + 1)
        return feed

    def _with_batch(self) -> list[TensorSpec]:
        return [spec for spec in self._graph.contract.inputs if spec.axes[0] == "batch"]

    def _cut(self, found: Mapping[str, Array]) -> dict[str, Array]:
        """The first row, without padding."""
        return {
            name: found[name][tuple(slice(size) for size in alone.shape)]
            for name, alone in self._alone.items()
        }

    def _variation(self, beside: str, found: Mapping[str, Array], limit: float) -> Variation:
        apart = [_apart(found[name], alone) for name, alone in self._alone.items()]
        return Variation(graph=self.title, beside=beside, difference=max(apart), limit=limit)


def _other(row: Array, index: int) -> Array:
    """Other content of the same shape and range; numbers that say where things are stay."""
    moved: Array = row if row.ndim < 3 else np.roll(row, index, axis=-2)
    return moved


def _last(found: Mapping[str, Array]) -> dict[str, Array]:
    return {name: array[-1:] for name, array in found.items()}


def _apart(found: Array, alone: Array) -> float:
    a, b = found.astype(np.float64), alone.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    largest = float(np.abs(b).max(initial=0.0))
    return float(np.abs(a - b).max(initial=0.0)) / largest if largest else float(np.abs(a).max())
