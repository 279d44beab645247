"""Computes random weights, which depend on a seed and a name alone, and quickly.

A weight is one of 65,536 quantiles of a normal distribution, selected by 16 random bits. So a piece
costs the sampling of bits and a look-up in the dtype asked for, a fifth of the time of normal
numbers in float32, and no value lies beyond 4.4 standard deviations: none leaves float16.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from iblip.export.artifact.contract import DTYPES
from iblip.export.models.geometry import Config

QUANTILES = 1 << 16

PIECE = 1 << 20
"""Number of elements in a piece."""

SMALL = 0.02
"""Standard deviation of biases, and of norms around 1: transformers' `initializer_range` of all
these models."""


@cache
def _quantiles() -> npt.NDArray[np.float64]:
    normal = NormalDist()
    return np.array([normal.inv_cdf((i + 0.5) / QUANTILES) for i in range(QUANTILES)])


def spread(name: str, shape: tuple[int, ...], text: Config) -> tuple[float, float]:
    """Returns mean and standard deviation of a tensor's values.

    A matrix of `n` inputs has the deviation 1/sqrt(n), so that activations keep their size; tables
    (embeddings, positions, queries) have the same for their width. T5 does not divide its scores by
    sqrt(d_kv), and has that factor in its queries' weights instead (transformers,
    `T5PreTrainedModel`, `_init_weights`).

    Args:
        name: transformers'.
        shape: in elements.
        text: the language model's config.
    """
    if len(shape) == 1:
        return (0.0 if name.endswith(".bias") else 1.0), SMALL
    inputs = math.prod(shape[1:]) if len(shape) == 4 else shape[-1]  # 4: a convolution
    deviation = 1 / math.sqrt(inputs)
    if name.endswith("Attention.q.weight"):
        deviation /= math.sqrt(text["d_kv"])
    return 0.0, deviation


def pieces(
    name: str, count: int, dtype: str, *, mean: float, deviation: float, seed: int
) -> Iterator[npt.NDArray[Any]]:
    """Yields the values of the tensor `name` in order, `PIECE` elements at a time.

    Args:
        name: transformers'; together with `seed` it determines every value.
        count: number of elements.
        dtype: a key of `export.artifact.contract.DTYPES`.
        mean: of the values.
        deviation: their standard deviation.
        seed: of the checkpoint.
    """
    table = (mean + deviation * _quantiles()).astype(DTYPES[dtype])
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    bits = np.random.Generator(np.random.SFC64(int.from_bytes(digest)))
    for start in range(0, count, PIECE):
        size = min(PIECE, count - start)
        # Words of 64 bits, which numpy samples without holding the interpreter lock.
        words = bits.integers(0, 1 << 64, size=-(-size // 4), dtype=np.uint64)
        yield table[words.view(np.uint16)[:size]]
