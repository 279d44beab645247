"""Compares a build's graphs with the reference block by block, and finds where an error begins.

A block is a layer of a transformer. Two relative errors are computed for each: the norm of the
difference over the norm of the reference's result, the largest of all recorded examples.

- Its *own*: the block reads the reference's own stream, so that errors do not accumulate.
- The *stream*'s: the graph runs as it is, with the errors of earlier blocks.

The band of a block's own error is one number per precision. That of the stream grows with the
square root of the depth: roundings of independent blocks add as their squares do. The first block
that leaves either band is named. What stands before a graph's first block counts to that block, and
what comes after the last is named by the graph's output (`image_embeds`, `logits`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from iblip.export.artifact.verified_graph import OnnxGraph
from iblip.export.components.block_marks import OUTPUT
from iblip.export.progress import Advance
from iblip.export.verification.feeds import CROSS, feed_of
from iblip.export.verification.recording import Recording
from iblip.export.verification.sessions import Taps, with_separate_blocks, with_taps
from iblip.export.verification.thresholds import Band

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class BlockError:
    """How far one block is from the reference. True if it keeps its bands.

    Attributes:
        path: of the block, as the checkpoint names it; or the graph's output, after the last one.
        depth: in its stack, from 1; the output's is one more than the last block's.
        own: relative error if the block reads the reference's stream.
        stream: relative error of the stream after it.
        max_abs: largest absolute difference of the stream.
        cosine: of the stream, flattened: the smallest.
        own_limit, stream_limit: the bands.
    """

    path: str
    depth: int
    own: float
    stream: float
    max_abs: float
    cosine: float
    own_limit: float
    stream_limit: float

    def __bool__(self) -> bool:
        return self.own <= self.own_limit and self.stream <= self.stream_limit

    def __str__(self) -> str:
        own = f"own error {self.own:.2e} (band {self.own_limit:.1e})"
        return f"{self.path}: {own}, of the stream {self.stream:.2e} (band {self.stream_limit:.1e})"

    def to_json(self) -> dict[str, Any]:
        """Returns every field, JSON-ready."""
        return {**asdict(self), "passed": bool(self)}


def block_errors(
    graph: OnnxGraph,
    recordings: Sequence[Recording],
    pixels: Sequence[Array],
    band: Band,
    advance: Advance,
) -> list[BlockError]:
    """Compares every block of `graph`, and its output, over all recordings.

    Args:
        graph: any but `embed_tokens`.
        recordings: of the reference.
        pixels: each recording's image as the client prepares it, uint8 `[height, width, 3]`.
        band: of the graph's precision.
        advance: called with 1 for each recording, twice.
    """
    examples = list(zip(recordings, pixels, strict=True))
    taps = with_taps(graph.path)
    types = taps.types
    streams = _differences(graph, taps, examples, advance)
    del taps  # a large graph is in memory once
    own = _differences(graph, with_separate_blocks(graph.path, types), examples, advance)
    return [
        _error(name, depth, streams[name], own[name], band)
        for depth, name in enumerate(streams, start=1)
    ]


def first_out(errors: Sequence[BlockError]) -> BlockError | None:
    """Returns the first block that leaves its band; `None` if all keep theirs."""
    return next((error for error in errors if not error), None)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference of two arrays.

    Attributes:
        relative: norm of the difference over the norm of the expected array.
        max_abs: largest absolute difference of an element.
        cosine: between the two, flattened.
    """

    relative: float
    max_abs: float
    cosine: float


def difference(actual: Array, expected: Array) -> Difference:
    """Compares arrays of one shape. A value that is not finite gives infinity and cosine 0."""
    a, b = actual.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Difference(relative=math.inf, max_abs=math.inf, cosine=0.0)
    distance, size = float(np.linalg.norm(a - b)), float(np.linalg.norm(b))
    scale = float(np.linalg.norm(a)) * size
    return Difference(
        relative=distance / size if size else (math.inf if distance else 0.0),
        max_abs=float(np.abs(a - b).max(initial=0.0)),
        cosine=float(a @ b) / scale if scale else float(not distance),
    )


def _differences(
    graph: OnnxGraph, taps: Taps, examples: Sequence[tuple[Recording, Array]], advance: Advance
) -> dict[str, list[Difference]]:
    """Returns the differences of every block and of the output, in this order, by example."""
    differences: dict[str, list[Difference]] = {n: [] for n in (*taps.blocks, _output(graph))}
    for recording, pixels in examples:
        feed = feed_of(graph, recording, pixels)
        actual = taps.run({**feed, **taps.block_inputs(recording.blocks)})
        expected = {**recording.blocks, **recording.tensors}
        for name, of_examples in differences.items():
            of_examples.append(difference(_tensor(name, actual), _tensor(name, expected)))
        advance(1)
    return differences


def _output(graph: OnnxGraph) -> str:
    """What comes behind the last block; of T5's encoder, the keys and values made of it."""
    first = graph.contract.outputs[0].name
    return CROSS if first.startswith(CROSS) else first


def _tensor(name: str, tensors: Mapping[str, Array]) -> Array:
    if name == CROSS:
        return np.stack([tensors[key] for key in tensors if key.startswith(CROSS)])
    array = tensors[name]
    # The reference and a decoder over slots have those of the last position alone.
    last = name == "logits" and array.ndim == 3
    return array[:, -1] if last else array


def _error(
    name: str, depth: int, stream: list[Difference], own: list[Difference], band: Band
) -> BlockError:
    return BlockError(
        path=name.removesuffix(OUTPUT),
        depth=depth,
        own=max(difference.relative for difference in own),
        stream=max(difference.relative for difference in stream),
        max_abs=max(difference.max_abs for difference in stream),
        cosine=min(difference.cosine for difference in stream),
        own_limit=band.own,
        stream_limit=band.own * math.sqrt(depth),
    )
