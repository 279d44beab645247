"""Joins several requests into batches, and splits the results. Knows only numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from iblip.engines.cuda.errors import find_fatal

Tensors = Mapping[str, npt.NDArray[Any]]


def run_joined(
    feeds: Sequence[Tensors], infer: Callable[[Tensors], Tensors], *, largest: int
) -> list[Tensors | Exception]:
    """Runs together the feeds that differ only in their batch size; keeps their order.

    If a run fails, its requests are run again one by one, so that only those that fail alone get
    the error. If the GPU can no longer be used, all of them get it at once.

    Args:
        feeds: tensors by name, each `[batch, ...]`, in batches of 1 or more.
        infer: from one feed to its outputs, each `[batch, ...]`.
        largest: rows that one run takes; more are run one batch after another.
    """
    results: list[Tensors | Exception] = [RuntimeError("not run")] * len(feeds)
    groups: dict[object, list[int]] = {}
    for index, feed in enumerate(feeds):
        groups.setdefault(_signature(feed), []).append(index)
    for indices in groups.values():
        outcomes = _run([feeds[i] for i in indices], infer, largest)
        for index, outcome in zip(indices, outcomes, strict=True):
            results[index] = outcome
    return results


def _signature(feed: Tensors) -> object:
    return tuple((name, array.dtype.str, array.shape[1:]) for name, array in sorted(feed.items()))


def _run(
    feeds: Sequence[Tensors], infer: Callable[[Tensors], Tensors], largest: int
) -> list[Tensors | Exception]:
    sizes = [len(next(iter(feed.values()))) for feed in feeds]
    joined = feeds[0]
    if len(feeds) > 1:
        joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in joined}
    try:
        outputs = _run_in_batches(joined, sum(sizes), infer, largest)
    except Exception as error:  # it is these requests' failure, not the process's
        if len(feeds) == 1 or find_fatal(error):
            return [error] * len(feeds)
        return [outcome for feed in feeds for outcome in _run([feed], infer, largest)]
    ends = np.cumsum(sizes)
    return [
        {name: array[end - size : end] for name, array in outputs.items()}
        for end, size in zip(ends, sizes, strict=True)
    ]


def _run_in_batches(
    feed: Tensors, rows: int, infer: Callable[[Tensors], Tensors], largest: int
) -> Tensors:
    if rows <= largest:
        return infer(feed)
    starts = range(0, rows, largest)
    runs = [
        infer({name: a[start : start + largest] for name, a in feed.items()}) for start in starts
    ]
    return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}
