"""Has images encoded where Triton's response cache may hold a run of them that failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from iblip.export.errors import EngineError

Tensors = Mapping[str, npt.NDArray[Any]]
Chain = Callable[[Tensors], npt.NDArray[Any] | None]
"""From inputs `[rows, ...]` to float `[rows, queries, d_llm]`; `None` where that run has failed."""


def encode_past_failures(chain: Chain, inputs: Tensors, *, largest: int) -> npt.NDArray[Any]:
    """The visual prompt of images, float `[rows, queries, d_llm]`.

    Triton 2.51 keeps failed runs, too, in its response cache: it answers whoever sends the same
    tensors again with no output, until it is started again. Such images are sent one by one, each
    several times in a request, which the cache does not know.

    Args:
        chain: runs vision encoder and Q-Former.
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
