"""Has images encoded, but for those in the vision cache.

Triton's response cache may hold a run of them that failed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from iblip.engines.vision_cache.cache import VisionCache
from iblip.export.errors import EngineError
from iblip.serving.wire.names import IMAGE_EMBEDS, PIXELS

Tensors = Mapping[str, npt.NDArray[Any]]
Chain = Callable[[Tensors], npt.NDArray[Any] | None]
"""From inputs `[rows, ...]` to float `[rows, queries, d_llm]`; `None` where that run has failed."""


def encode_cached(
    cache: VisionCache, encoder: Chain, qformer: Chain, inputs: Tensors, *, largest: int
) -> npt.NDArray[Any]:
    """The visual prompt of images, float `[rows, queries, d_llm]`.

    Args:
        cache: of the vision encoder.
        encoder: from `pixels` to `image_embeds`; sees the images that are not in the cache.
        qformer: from `image_embeds` and the inputs but `pixels` to the visual prompt.
        inputs: by name, each `[rows, ...]`.
        largest: rows that one request may have.

    Raises:
        EngineError: they have failed before.
    """
    pixels = inputs[PIXELS]
    keys = [cache.key(image) for image in pixels]
    embeds = {key: cache.find(key) for key in keys}
    missing = {key: row for row, key in enumerate(keys) if embeds[key] is None}
    if missing:
        new = {PIXELS: pixels[list(missing.values())]}
        encoded = encode_past_failures(encoder, new, largest=largest)
        for key, row in zip(missing, encoded, strict=True):
            embeds[key] = row[None]
            cache.add(key, row[None])
    # image_embeds: [rows, patches, d_vision]
    image_embeds = np.concatenate([embeds[key] for key in keys])
    text = {name: array for name, array in inputs.items() if name != PIXELS}
    visual_prompt = qformer({IMAGE_EMBEDS: image_embeds, **text})
    if visual_prompt is None:
        raise EngineError("the Q-Former has answered with no visual prompt")
    return visual_prompt


def encode_past_failures(chain: Chain, inputs: Tensors, *, largest: int) -> npt.NDArray[Any]:
    """The visual prompt of images, float `[rows, queries, d_llm]`.

    Triton 2.51 keeps failed runs, too, in its response cache: it answers whoever sends the same
    tensors again with no output, until it is started again. Such images are sent one by one, each
    several times in a request, which the cache does not know.

    Args:
        chain: runs vision encoder and Q-Former, or the former alone.
        inputs: by name, each `[rows, ...]`.
        largest: rows that one request may have.

    Raises:
        EngineError: they have failed in every number.
    """
    found = chain(inputs)
    if found is not None:
        return found
    rows = range(len(next(iter(inputs.values()))))
    singles = [{name: array[row : row + 1] for name, array in inputs.items()} for row in rows]
    return np.concatenate([_encode_one(chain, single, largest) for single in singles])


def _encode_one(chain: Chain, single: Tensors, largest: int) -> npt.NDArray[Any]:
    for count in range(1, largest + 1):
        found = chain({name: array.repeat(count, axis=0) for name, array in single.items()})
        if found is not None:
            return found[:1]
    raise EngineError("these images have failed to be encoded before; start the server again")
