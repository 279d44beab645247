"""Handwritten digits: where they come from, how they are split, how one is drawn at some size.

The source is scikit-learn's copy of the UCI "Optical Recognition of Handwritten Digits" test set
(CC BY 4.0): 1,797 images of 8x8 pixels with 17 grey levels. The split is by source image, so a
held-out image only ever shows handwriting that no training image showed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

Split = Literal["train", "validation", "heldout"]
Floats = npt.NDArray[np.float32]
Grid = npt.NDArray[np.floating[Any]]

SPLIT_SEED = 20230511  # the month InstructBLIP appeared
FRACTIONS: dict[Split, float] = {"heldout": 0.20, "validation": 0.05, "train": 0.75}

_SMOOTH = 40  # pixels: side of the once-upscaled 8x8 source
_MARGIN = 4  # pixels of blank border around it, so that a turned digit is not cut


@dataclass(frozen=True)
class DigitSource:
    """The digits of one split.

    Attributes:
        smooth: float32 `[count, side, side]`, ink in 0..1, upscaled with a blank border.
        labels: int64 `[count]`, 0..9.
        indices: int64 `[count]`, positions in scikit-learn's data set.
    """

    smooth: Floats
    labels: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int64]

    def of_class(self, digit: int) -> npt.NDArray[np.int64]:
        """Rows of `smooth` that show `digit`."""
        return np.flatnonzero(self.labels == digit)


def split_indices(labels: npt.NDArray[np.int64]) -> dict[Split, npt.NDArray[np.int64]]:
    """Split positions per class, each class in the same proportions, disjoint and seeded."""
    rng = np.random.default_rng(SPLIT_SEED)
    parts: dict[Split, list[npt.NDArray[np.int64]]] = {name: [] for name in FRACTIONS}
    for digit in range(10):
        rows = rng.permutation(np.flatnonzero(labels == digit))
        held, validation = (round(len(rows) * FRACTIONS[n]) for n in ("heldout", "validation"))
        parts["heldout"].append(rows[:held])
        parts["validation"].append(rows[held : held + validation])
        parts["train"].append(rows[held + validation :])
    return {name: np.sort(np.concatenate(rows)) for name, rows in parts.items()}


@cache
def load_source(split: Split) -> DigitSource:
    """Read one split of the digits, upscaled smoothly and ready to be sampled from."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    labels = bunch.target.astype(np.int64)
    rows = split_indices(labels)[split]
    smooth = np.stack([_upscale(bunch.images[row]) for row in rows])
    return DigitSource(smooth=smooth, labels=labels[rows], indices=rows)


def _upscale(image: npt.NDArray[np.float64]) -> Floats:
    """Bicubic upscale of one 8x8 image (0..16) to ink in 0..1 with a blank border."""
    padded = np.pad(image.astype(np.float32) / 16.0, 1)  # a blank pixel keeps the edge smooth
    side = _SMOOTH * 10 // 8
    grown = np.asarray(Image.fromarray(padded).resize((side, side), Image.Resampling.BICUBIC))
    return np.pad(np.clip(grown, 0.0, 1.0), _MARGIN).astype(np.float32)


def draw_glyph(smooth: Floats, size: int, rng: np.random.Generator) -> Floats:
    """Draw one digit, slightly turned, slanted, stretched and bent.

    Args:
        smooth: one row of `DigitSource.smooth`.
        size: side of the result in pixels; the 8x8 source fills it before the distortion.
        rng: where the distortion comes from.

    Returns:
        float32 `[size, size]`, ink in 0..1.
    """
    turn, slant = rng.normal(0.0, [0.12, 0.10])  # radians, and sideways per downwards
    stretch = rng.uniform(0.9, 1.1, size=2)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5  # -0.5..0.5
    y, x = np.meshgrid(axis, axis, indexing="ij")
    bend = rng.normal(0.0, 0.025, size=(2, 2, 2))  # a slow wave per direction and axis
    wave_y, wave_x = np.sin(2 * np.pi * y), np.sin(2 * np.pi * x)
    x = x + bend[0, 0, 0] * wave_y + bend[0, 0, 1] * wave_x
    y = y + bend[1, 0, 0] * wave_x + bend[1, 0, 1] * wave_y
    source_x = (np.cos(turn) * x - np.sin(turn) * y + slant * y) * stretch[0]
    source_y = (np.sin(turn) * x + np.cos(turn) * y) * stretch[1]
    centre = smooth.shape[0] / 2 - 0.5
    ink = _bilinear(smooth, centre + source_y * _SMOOTH, centre + source_x * _SMOOTH)
    gain = rng.uniform(1.1, 1.7)  # pen pressure
    return np.clip(ink * gain, 0.0, 1.0).astype(np.float32)


def _bilinear(image: Floats, rows: Grid, columns: Grid) -> Grid:
    """Sample `image` at fractional positions; outside it there is no ink."""
    limit = image.shape[0] - 1.001
    inside = (rows >= 0) & (rows <= limit) & (columns >= 0) & (columns <= limit)
    rows, columns = np.clip(rows, 0, limit), np.clip(columns, 0, limit)
    top, left = rows.astype(np.int64), columns.astype(np.int64)
    down, right = rows - top, columns - left
    upper = image[top, left] * (1 - right) + image[top, left + 1] * right
    lower = image[top + 1, left] * (1 - right) + image[top + 1, left + 1] * right
    sampled: Grid = (upper * (1 - down) + lower * down) * inside
    return sampled
