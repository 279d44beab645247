"""Random weights to safetensors files: made in pieces, by several threads, each in its place."""

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
"""Most bytes of tensors in a file: as transformers 4 cuts checkpoints."""

THREADS = 2
"""More would wait for the disk."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What is to be made.

    Attributes:
        shapes: in elements, by name.
        dtype: of all, a key of `export.artifact.contract.DTYPES`.
        seed: decides every value, with its tensor's name.
        text: the language model's config.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtype: str
    seed: int
    text: Config

    def nbytes(self, name: str) -> int:
        """Of one tensor."""
        return math.prod(self.shapes[name]) * np.dtype(DTYPES[self.dtype]).itemsize

    @property
    def total(self) -> int:
        """Bytes of all tensors."""
        return sum(map(self.nbytes, self.shapes))


def write_shards(
    weights: Weights, directory: Path, advance: Advance, *, shard: int = SHARD
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Writes `model.safetensors`, or several shards of it.

    Args:
        weights: what to make.
        directory: exists.
        advance: told of the bytes written.
        shard: most bytes of tensors in one file.

    Returns:
        Tensor to file name, and the file names.

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
    """Names in order, in groups of at most so many bytes (or of one tensor that is larger)."""
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
            jobs.append(submit(pool, _tensor, weights, name, stream.fileno(), offset, advance))
            offset += weights.nbytes(name)
        try:
            for job in jobs:
                job.result()
        finally:
            for job in jobs:
                job.cancel()


def _tensor(weights: Weights, name: str, file: int, offset: int, advance: Advance) -> None:
    shape = weights.shapes[name]
    mean, deviation = spread(name, shape, weights.text)
    made = pieces(
        name,
        math.prod(shape),
        weights.dtype,
        mean=mean,
        deviation=deviation,
        seed=weights.seed,
    )
    for piece in made:
        data = piece.view(np.uint8).data
        while data:  # the system may take less than it is given
            written = os.pwrite(file, data, offset)
            data, offset = data[written:], offset + written
        advance(piece.nbytes)
