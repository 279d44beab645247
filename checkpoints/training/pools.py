"""Pools: many images drawn once, resized as the processor does, kept as arrays on disk.

Drawing an image costs about as much as a training step on it, so it is done ahead, in parallel,
and reused by every stage and by both models.
"""

from __future__ import annotations

import logging
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from .digits import Split, load_source
from .scenes import COLOURS, PLACES, SIZES, TONES, Digit, Pixels, Scene, draw, random_scene

log = logging.getLogger(__name__)

IMAGE_SIZE = 72  # pixels: side of the model's square input
NOTHING = -1  # label of an empty place
_CHUNK = 1000  # images drawn from one seed


@dataclass(frozen=True)
class PoolSpec:
    """What a pool holds; equal specs give equal pools.

    Attributes:
        split: whose handwriting is shown.
        count: images, a multiple of 1000.
        crowded: four to nine digits an image, values may repeat (for the vision encoder, which
            learns from each of them); otherwise one to three, all different (for questions).
        seed: distinguishes pools that are otherwise alike.
    """

    split: Split
    count: int
    crowded: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count <= 0 or self.count % _CHUNK:
            raise ValueError(f"count is {self.count}; a positive multiple of {_CHUNK} is needed")

    @property
    def name(self) -> str:
        """File name without suffix."""
        return f"{self.split}-{'crowded' if self.crowded else 'sparse'}-{self.count}-{self.seed}"


CROWDED = PoolSpec("train", 48000, crowded=True)
TRAINING = PoolSpec("train", 48000)
VALIDATION = PoolSpec("validation", 2000)


@dataclass(frozen=True)
class Pool:
    """Pictures and what they show.

    Attributes:
        pixels: uint8 `[count, IMAGE_SIZE, IMAGE_SIZE, 3]`.
        labels: int8 `[count, 9, 3]`: per place digit value, index into `COLOURS`, index into
            `SIZES`; `NOTHING` where the place is empty.
        tones: int8 `[count]`, index into `TONES`.
    """

    pixels: Pixels
    labels: npt.NDArray[np.int8]
    tones: npt.NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.pixels)

    def scene(self, row: int) -> Scene:
        """The scene of one image, as far as questions can ask about it."""
        digits = tuple(
            Digit(int(value), COLOURS[colour], SIZES[size], place, source=0)
            for place, (value, colour, size) in enumerate(self.labels[row])
            if value != NOTHING
        )
        return Scene(digits, TONES[self.tones[row]], "flat", (IMAGE_SIZE, IMAGE_SIZE))


def resize(pixels: Pixels) -> Pixels:
    """Bicubic resize to the model's square, exactly as the image processor does it."""
    if pixels.shape[:2] == (IMAGE_SIZE, IMAGE_SIZE):
        return pixels
    square = (IMAGE_SIZE, IMAGE_SIZE)
    return np.asarray(Image.fromarray(pixels).resize(square, Image.Resampling.BICUBIC))


def pool_from_spec(spec: PoolSpec, cache: Path, workers: int = 2) -> Pool:
    """Load the pool from `cache`, drawing it first where it is not there yet."""
    path = cache / f"{spec.name}.npz"
    if not path.exists():
        log.info("drawing %s", spec.name)
        cache.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(workers) as executor:
            parts = list(executor.map(_draw_chunk, *zip(*_chunks(spec), strict=True)))
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        beside = path.with_suffix(".partial.npz")
        np.savez(beside, pixels=columns[0], labels=columns[1], tones=columns[2])
        beside.rename(path)
    with np.load(path) as stored:
        return Pool(stored["pixels"], stored["labels"], stored["tones"])


def _chunks(spec: PoolSpec) -> list[tuple[PoolSpec, int]]:
    return [(spec, number) for number in range(spec.count // _CHUNK)]


def _draw_chunk(
    spec: PoolSpec, number: int
) -> tuple[Pixels, npt.NDArray[np.int8], npt.NDArray[np.int8]]:
    source = load_source(spec.split)
    pixels = np.empty((_CHUNK, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    labels = np.full((_CHUNK, len(PLACES), 3), NOTHING, np.int8)
    tones = np.empty(_CHUNK, np.int8)
    for row in range(_CHUNK):
        rng = np.random.default_rng([spec.seed, int(spec.crowded), number, row])
        count = int(rng.integers(4, 10) if spec.crowded else rng.integers(1, 4))
        scene = random_scene(source, rng, count, distinct=not spec.crowded)
        pixels[row] = resize(draw(scene, source, rng))
        tones[row] = TONES.index(scene.tone)
        for digit in scene.digits:
            facts = (digit.value, COLOURS.index(digit.colour), SIZES.index(digit.size))
            labels[row, digit.place] = facts
    return pixels, labels, tones
