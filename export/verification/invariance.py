"""Checks whether a row's results depend on the rest of its batch, or on padding.

Batch: the same row alone, and as the last of a batch. Padding: the same row at its own length, with
masked positions behind it, and beside a row of that length. A decoder over slots is padded with
spare positions behind its text, which hold junk; it runs one decoding step, in any batch.
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
"""Batch sizes in which a row is computed."""

PADDING = (1, 7, 24)
"""Numbers of positions of padding, as far as there is room."""

PADDED_AXES: Mapping[str, tuple[str, ...]] = {
    "qformer/model": ("instruction",),
    "language_model/encoder": ("sequence",),
    "language_model/decoder": ("sequence", "total", "source"),
    "language_model/batched_decoder": ("capacity", "source_capacity"),
}
"""The axes that padding extends, by graph."""

SLOTS = "batched_decoder"


@dataclass(frozen=True, kw_only=True)
class Variation:
    """How much one row changed. True if it is within the limit.

    Attributes:
        graph: `component/graph`.
        beside: the circumstances, in words.
        difference: the largest of any output, relative to that output's largest magnitude.
        limit: of the difference.
    """

    graph: str
    beside: str
    difference: float
    limit: float

    def __bool__(self) -> bool:
        return self.difference <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Returns every field, JSON-ready."""
        return {**asdict(self), "passed": bool(self)}


class Row:
    """One row of one graph, computed alone.

    Args:
        graph: that computes it.
        session: of the graph.
        feed: of the row, with a batch of 1; for a decoder over slots, of its prompt.
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
        """Yields the variation of the row as the last of each of `BATCHES`."""
        for batch in BATCHES:
            outputs = self._run(self._among(batch))
            yield self._variation(f"in a batch of {batch}", _last_row(outputs), limit)

    def padded(self, limit: float, room: int) -> Iterator[Variation]:
        """Yields the variation of the row with padding, and beside a longer one.

        Args:
            limit: of the variation.
            room: largest number of positions of padding.
        """
        for extra in PADDING:
            if extra <= room and self.title in PADDED_AXES:
                longer = self._pad(self._feed, extra)
                outputs = self._cut(self._run(longer))
                yield self._variation(f"with {extra} positions of padding", outputs, limit)
                outputs = self._cut(self._run(self._beside(longer, extra)))
                yield self._variation(f"beside a row {extra} positions longer", outputs, limit)

    def _run(self, feed: Feed) -> dict[str, Array]:
        names = [spec.name for spec in self._graph.contract.outputs]
        return run(self._session, names, feed)

    def _step(self, feed: Feed) -> Feed:
        """Returns the feed of the step after the prompt of `feed`: one token in every slot."""
        length = feed["position_ids"].shape[1]
        roomy = {
            name: np.pad(array, ((0, 0), (0, 0), (0, 1), (0, 0)))
            if name.startswith(PAST)
            else array
            for name, array in feed.items()
        }
        present = {name.replace("present", "past"): a for name, a in self._run(roomy).items()}
        step = {name: present.get(name, array) for name, array in feed.items()}
        step |= {
            name: feed[name][:, -1:] for name in ("input_ids", "inputs_embeds") if name in feed
        }
        step["position_ids"] = np.full((1, 1), length, np.int64)
        return _with_lengths(step)

    def _among(self, batch: int) -> Feed:
        """Returns the row behind `batch - 1` others of the same shape and other content."""
        feed = dict(self._feed)
        for spec in self._with_batch():
            row = feed[spec.name]
            feed[spec.name] = np.concatenate([*(_other(row, i) for i in range(1, batch)), row])
        return _with_lengths(feed)

    def _pad(self, feed: Feed, extra: int) -> dict[str, Array]:
        longer = dict(feed)
        axes = PADDED_AXES[self.title]
        for spec in self._graph.contract.inputs:
            pad = [(0, extra if axis in axes else 0) for axis in spec.axes]
            fill = 0 if longer[spec.name].dtype.kind in "iu" else JUNK
            longer[spec.name] = np.pad(longer[spec.name], pad, constant_values=fill)
        return longer

    def _beside(self, longer: dict[str, Array], extra: int) -> Feed:
        """Returns the padded row, and behind it one with text where the first has padding."""
        feed = dict(longer)
        for spec in self._with_batch():
            row = longer[spec.name]
            other = np.ones_like(row) if spec.name.endswith("mask") else _other(row, 1)
            if spec.name in ("position_ids", "source_lengths") and self._graph.name == SLOTS:
                other = other + extra
            feed[spec.name] = np.concatenate([row, other])
        return _with_lengths(feed)

    def _with_batch(self) -> list[TensorSpec]:
        return [spec for spec in self._graph.contract.inputs if spec.axes[0] == "batch"]

    def _cut(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Returns the first row, without padding."""
        return {
            name: outputs[name][tuple(slice(size) for size in alone.shape)]
            for name, alone in self._alone.items()
        }

    def _variation(self, beside: str, outputs: Mapping[str, Array], limit: float) -> Variation:
        largest = max(_difference(outputs[name], alone) for name, alone in self._alone.items())
        return Variation(graph=self.title, beside=beside, difference=largest, limit=limit)


def _with_lengths(feed: dict[str, Array]) -> Feed:
    """Sets what a decoder over slots reads of all rows together; other feeds do not change."""
    if "logits_at" not in feed:
        return feed
    total = int(feed["position_ids"].max()) + 1
    feed["logits_at"] = np.arange(len(feed["position_ids"]))  # one new position in each row
    feed["total_sequence_length"] = np.array([total], np.int32)
    if "source_lengths" in feed:
        feed["key_positions"] = np.arange(total)
        feed["total_source_length"] = feed["source_lengths"].max(keepdims=True).astype(np.int32)
    return feed


def _other(row: Array, index: int) -> Array:
    """Returns other content of the same shape and range; masks and positions do not change."""
    moved: Array = row if row.ndim < 3 else np.roll(row, index, axis=-2)
    return moved


def _last_row(outputs: Mapping[str, Array]) -> dict[str, Array]:
    return {name: array[-1:] for name, array in outputs.items()}


def _difference(actual: Array, alone: Array) -> float:
    a, b = actual.astype(np.float64), alone.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    largest = float(np.abs(b).max(initial=0.0))
    return float(np.abs(a - b).max(initial=0.0)) / largest if largest else float(np.abs(a).max())
