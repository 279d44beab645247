"""Joins several requests into one batch, and splits the results. Knows only numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Tensors = Mapping[str, npt.NDArray[Any]]


def run_joined(
    feeds: Sequence[Tensors], infer: Callable[[Tensors], Tensors]
) -> list[Tensors | Exception]:
    """Runs together the feeds that differ only in their batch size; keeps their order.

    A failure is the result of every request in its batch, so that each gets a reply.

    Args:
        feeds: tensors by name, each `[batch, ...]`.
        infer: from one feed to its outputs, each `[batch, ...]`.
    """
    results: list[Tensors | Exception] = [RuntimeError("not run")] * len(feeds)
    groups: dict[object, list[int]] = {}
    for index, feed in enumerate(feeds):
        groups.setdefault(_signature(feed), []).append(index)
    for indices in groups.values():
        for index, result in zip(indices, _run([feeds[i] for i in indices], infer), strict=True):
            results[index] = result
    return results


def _signature(feed: Tensors) -> object:
    return tuple((name, array.dtype.str, array.shape[1:]) for name, array in sorted(feed.items()))


def _run(
    feeds: Sequence[Tensors], infer: Callable[[Tensors], Tensors]
) -> Sequence[Tensors | Exception]:
    sizes = [len(next(iter(feed.values()))) for feed in feeds]
    joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
    try:
        outputs = infer(joined)
    except Exception as error:  # it is these requests' failure, not the process's
        return [error] * len(feeds)
    ends = np.cumsum(sizes)
    return [
        {name: array[end - size : end] for name, array in outputs.items()}
        for end, size in zip(ends, sizes, strict=True)
    ]
