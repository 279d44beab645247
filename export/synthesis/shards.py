"""Writes random weights to safetensors files, in pieces and by several threads."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iblip.export.artifact.contract import DTYPES
from iblip.export.checkpoint.safetensors import safetensors_header
from iblip.export.models.geometry import Config
from iblip.export.progress import Advance
from iblip.export.synthesis.values import pieces, spread
from iblip.export.system.interrupts import submit

SHARD = 5_000_000_000
"""Default size of a shard in bytes of tensors, as in transformers 4."""

THREADS = 2
"""Number of threads that compute and write; more would wait for the disk."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The random weights of a checkpoint.

    Attributes:
        shapes: in elements, by name.
        dtype: of all tensors, a key of `export.artifact.contract.DTYPES`.
        seed: determines every value, together with the tensor's name.
        text: the language model's config.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtype: str
    seed: int
    text: Config

    def nbytes(self, name: str) -> int:
        """Returns the size of one tensor in bytes."""
        return math.prod(self.shapes[name]) * np.dtype(DTYPES[self.dtype]).itemsize

    @property
    def total(self) -> int:
        """Size of all tensors in bytes."""
        return sum(map(self.nbytes, self.shapes))


def write_shards(
    weights: Weights, directory: Path, advance: Advance, *, shard: int = SHARD
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Writes `model.safetensors`, or several shards of it.

    Args:
        weights: to write.
        directory: must exist.
        advance: called with the bytes written.
        shard: largest number of bytes of tensors in one file.

    Returns:
        The file name of every tensor, and the file names.

    Raises:
        OSError: the disk is full, or the directory cannot be written.
    """
    groups = list(_cut(weights, shard))
    names = _names(len(groups))
    with ThreadPoolExecutor(THREADS) as pool:
        for name, group in zip(names, groups, strict=True):
            _write(weights, group, directory / name, advance, pool)
    places = {t: name for name, group in zip(names, groups, strict=True) for t in group}
    return places, names


def _names(count: int) -> tuple[str, ...]:
    if count == 1:
        return ("model.safetensors",)
    return tuple(f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count))


def _cut(weights: Weights, most: int) -> Iterator[list[str]]:
    """Yields names in groups of at most `most` bytes, or of one tensor that is larger."""
    group: list[str] = []
    size = 0
    for name in weights.shapes:
        if group and size + weights.nbytes(name) > most:
            yield group
            group, size = [], 0
        group.append(name)
        size += weights.nbytes(name)
    yield group


def _write(
    weights: Weights,
    group: Sequence[str],
    path: Path,
    advance: Advance,
    pool: ThreadPoolExecutor,
) -> None:
    header = safetensors_header({n: (weights.shapes[n], weights.dtype) for n in group})
    with path.open("wb") as stream:
        stream.write(header)
        stream.flush()
        jobs, offset = [], len(header)
        for name in group:
            jobs.append(
                submit(pool, _write_tensor, weights, name, stream.fileno(), offset, advance)
            )
            offset += weights.nbytes(name)
        try:
            for job in jobs:
                job.result()
        finally:
            for job in jobs:
                job.cancel()


def _write_tensor(weights: Weights, name: str, file: int, offset: int, advance: Advance) -> None:
    shape = weights.shapes[name]
    mean, deviation = spread(name, shape, weights.text)
    values = pieces(
        name,
        math.prod(shape),
        weights.dtype,
        mean=mean,
        deviation=deviation,
        seed=weights.seed,
    )
    for piece in values:
        data = piece.view(np.uint8).data
        while data:  # the system may take less than it is given
            written = os.pwrite(file, data, offset)
            data, offset = data[written:], offset + written
        advance(piece.nbytes)
