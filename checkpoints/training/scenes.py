"""Scenes: a background with digits in colours at places, and the image drawn from it.

A scene is plain data; `draw` turns it into pixels. Everything random comes from the generator that
is passed in, so a seed names a scene and its image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from .digits import DigitSource, draw_glyph

Pixels = npt.NDArray[np.uint8]
Size = Literal["small", "large"]
Tone = Literal["dark", "light"]

PLACES = (
    "top left", "top centre", "top right",
    "centre left", "centre", "centre right",
    "bottom left", "bottom centre", "bottom right",
)  # fmt: skip
COLOURS = ("red", "green", "blue", "yellow", "purple", "white", "black")
SIZES: tuple[Size, ...] = ("small", "large")
TONES: tuple[Tone, ...] = ("dark", "light")
PATTERNS = ("flat", "gradient", "noise", "stripes")

# RGB, one table a tone, so that ink always stands out from what lies behind it.
INK: dict[Tone, dict[str, tuple[int, int, int]]] = {
    "dark": {
        "red": (235, 55, 45), "green": (60, 205, 80), "blue": (70, 120, 255),
        "yellow": (245, 220, 60), "purple": (190, 80, 230), "white": (240, 240, 240),
    },
    "light": {
        "red": (210, 30, 30), "green": (20, 140, 50), "blue": (30, 75, 220),
        "purple": (135, 40, 175), "black": (20, 20, 20),
    },
}  # fmt: skip

# Side of a digit as a share of the image's shorter side; any large one is 1.36 times any small.
SIDE: dict[Size, tuple[float, float]] = {"small": (0.21, 0.25), "large": (0.34, 0.38)}

# Height and width in pixels. The model's own size is the most common, not the only one.
CANVASES = ((72, 72), (96, 96), (96, 128), (128, 96), (64, 64))
CANVAS_SHARE = (0.4, 0.3, 0.1, 0.1, 0.1)


@dataclass(frozen=True)
class Digit:
    """One digit of a scene: what it is, how it looks, where it stands."""

    value: int
    colour: str
    size: Size
    place: int  # index into PLACES
    source: int  # row of DigitSource


@dataclass(frozen=True)
class Scene:
    """What an image shows. `digits` are in reading order and differ in value."""

    digits: tuple[Digit, ...]
    tone: Tone
    pattern: str
    canvas: tuple[int, int]  # height, width in pixels


def random_scene(
    source: DigitSource, rng: np.random.Generator, count: int, *, distinct: bool = True
) -> Scene:
    """Draw a scene of `count` digits at different places.

    Args:
        source: the split whose handwriting may appear.
        rng: where every choice comes from.
        count: digits in the scene, 1..9.
        distinct: whether no value repeats (questions need that; vision training does not).
    """
    tone = TONES[rng.integers(2)]
    inks = list(INK[tone])
    values = rng.permutation(10)[:count] if distinct else rng.integers(10, size=count)
    places = np.sort(rng.permutation(len(PLACES))[:count])
    digits = tuple(
        Digit(
            value=int(value),
            colour=inks[rng.integers(len(inks))],
            size=SIZES[rng.integers(2)],
            place=int(place),
            source=int(rng.choice(source.of_class(int(value)))),
        )
        for value, place in zip(values, places, strict=True)
    )
    pattern = PATTERNS[rng.integers(len(PATTERNS))]
    canvas = CANVASES[rng.choice(len(CANVASES), p=CANVAS_SHARE)]
    return Scene(digits=digits, tone=tone, pattern=pattern, canvas=canvas)


def draw(scene: Scene, source: DigitSource, rng: np.random.Generator) -> Pixels:
    """Draw a scene: uint8 `[height, width, 3]`, RGB."""
    image = _background(scene, rng)  # float32 [height, width, 3], 0..255
    for digit in scene.digits:
        _stamp(image, scene, digit, source, rng)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _background(scene: Scene, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """A dark or light ground, tinted a little: float32 `[height, width, 3]`, 0..255."""
    height, width = scene.canvas
    low, high = (10, 60) if scene.tone == "dark" else (195, 245)
    base = rng.uniform(low, high) + rng.uniform(-12, 12, size=3)
    other = rng.uniform(low, high) + rng.uniform(-12, 12, size=3)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * x / width + np.sin(angle) * y / height
    ground = np.broadcast_to(base, (height, width, 3)).astype(np.float32)
    if scene.pattern == "gradient":
        share = (along - along.min()) / (along.max() - along.min())
        ground = base + (other - base) * share[..., None]
    elif scene.pattern == "noise":  # in steps of 8, which keeps the files small
        steps = np.rint(rng.normal(0.0, 1.5, size=(height, width)))
        ground = np.rint(base) + 8.0 * steps[..., None]
    elif scene.pattern == "stripes":
        step = rng.uniform(14, 28) * np.sign(rng.uniform(-1, 1))
        wave = np.sin(2 * np.pi * along * rng.uniform(5, 10)) > 0
        ground = base + step * wave[..., None]
    return np.clip(ground, 0, 255).astype(np.float32)


def _stamp(
    image: npt.NDArray[np.float32],
    scene: Scene,
    digit: Digit,
    source: DigitSource,
    rng: np.random.Generator,
) -> None:
    """Blend one digit into `image`, near the middle of its place and wholly inside."""
    height, width = scene.canvas
    shorter = min(height, width)
    side = round(shorter * rng.uniform(*SIDE[digit.size]))
    row, column = divmod(digit.place, 3)
    shift = rng.uniform(-0.03, 0.03, size=2) * shorter
    top = round((row + 0.5) / 3 * height - side / 2 + shift[0])
    left = round((column + 0.5) / 3 * width - side / 2 + shift[1])
    top, left = min(max(top, 0), height - side), min(max(left, 0), width - side)
    ink = draw_glyph(source.smooth[digit.source], side, rng)[..., None]
    colour = np.array(INK[scene.tone][digit.colour], dtype=np.float32)
    colour = np.clip(colour + rng.uniform(-14, 14, size=3), 0, 255).astype(np.float32)
    window = image[top : top + side, left : left + side]
    window += (colour - window) * ink
