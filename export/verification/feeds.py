"""Builds the inputs of every graph, for one row, from a `Recording` of the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from iblip.export.artifact.contract import TensorSpec
from iblip.export.artifact.verified_graph import OnnxGraph
from iblip.export.verification.recording import Recording

Array = npt.NDArray[Any]

PAST = "past_key_values"
CROSS = "cross_key_values"


def feed_of(
    graph: OnnxGraph, recording: Recording, pixels: Array | None = None
) -> dict[str, Array]:
    """Returns the feed of `graph` for a recorded example. A decoder gets the whole prompt, no past.

    A decoder over slots gives the logits of the last position alone.

    Args:
        graph: any but `embed_tokens`.
        recording: of the reference.
        pixels: uint8 `[height, width, 3]`, for the vision encoder.

    Returns:
        Every input of the contract, in its dtype, with a batch of 1.
    """
    sources = dict(recording.tensors)
    if pixels is not None:
        sources["pixels"] = pixels[None]
    if graph.name in DECODERS and "decoder_embeds" in sources:
        sources["source"] = sources["inputs_embeds"]
        sources["inputs_embeds"] = sources["decoder_embeds"]
    return {spec.name: _input(spec, sources) for spec in graph.contract.inputs}


DECODERS = ("decoder", "batched_decoder")


def _input(spec: TensorSpec, sources: Mapping[str, Array]) -> Array:
    if spec.name.startswith(PAST):
        return _past(spec, sources["inputs_embeds"].shape[1])
    array = DERIVED[spec.name](sources) if spec.name in DERIVED else sources[spec.name]
    return np.ascontiguousarray(array.astype(spec.numpy_dtype))


def _past(spec: TensorSpec, length: int) -> Array:
    """Returns an empty cache, or an empty slot with room for the prompt."""
    sizes: dict[int | str, int] = {"batch": 1, "past": 0, "capacity": length}
    shape = [sizes.get(axis, axis) for axis in spec.axes]
    return np.zeros([int(size) for size in shape], spec.numpy_dtype)


def _ids(sources: Mapping[str, Array]) -> Array:
    """Returns -1, which stands for `inputs_embeds`, but of T5 the answer's own ids."""
    given = sources.get("decoder_ids")
    return np.full(sources["inputs_embeds"].shape[:2], -1) if given is None else given


def _length(sources: Mapping[str, Array]) -> Array:
    return np.array(sources["inputs_embeds"].shape[1:2])


def _positions(sources: Mapping[str, Array]) -> Array:
    return np.arange(sources["inputs_embeds"].shape[1])[None]


def _source(sources: Mapping[str, Array]) -> Array:
    return np.ones(sources["source"].shape[:2])


DERIVED: Mapping[str, Callable[[Mapping[str, Array]], Array]] = {
    "attention_mask": lambda sources: np.ones(sources["inputs_embeds"].shape[:2]),
    "encoder_attention_mask": _source,
    "input_ids": _ids,
    "position_ids": _positions,
    "logits_at": lambda sources: _length(sources) - 1,
    "total_sequence_length": _length,
    "key_positions": lambda sources: _positions(sources)[0],
    "source_lengths": lambda sources: _source(sources).sum(axis=1),
    "total_source_length": lambda sources: _source(sources).sum(axis=1),
}
"""Masks, positions and lengths, by input; they are derived from the shapes of others."""
