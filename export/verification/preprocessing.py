"""Compares the client's pixels with those of transformers' own image processor, bit by bit.

The processor is the one by Pillow: if torchvision is installed, transformers takes the one by
torchvision, whose resize differs by 1 on some pixels, and which the originals did not have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from iblip.export.artifact.manifest import Preprocessing
from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.images import pixels_from_image

Array = npt.NDArray[np.uint8]


def _transparent(image: Image.Image) -> Image.Image:
    clear = image.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(image.size))
    return clear


VARIANTS: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "as it is": lambda image: image,
    "grey": lambda image: image.convert("L"),
    "black and white": lambda image: image.convert("1"),
    "palette": lambda image: image.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE),
    "transparent": _transparent,
    "CMYK": lambda image: image.convert("CMYK"),
    "one pixel": lambda image: image.resize((1, 1)),
    "a line, 1 x 37": lambda image: image.resize((1, 37)),
    "wide, 301 x 7": lambda image: image.resize((301, 7)),
    "tall, 13 x 211": lambda image: image.resize((13, 211)),
    "large, 1024 x 768": lambda image: image.resize((1024, 768)),
}
"""Conversions of an image before both read it: the modes and sizes that files have."""


@dataclass(frozen=True, kw_only=True)
class PixelDifference:
    """The difference of one variant over all images. True if every value is the same.

    Attributes:
        variant: a key of `VARIANTS`.
        images: number of images.
        values: number of values (a pixel has three).
        different: number of values that differ.
        largest: largest difference, of 255.
    """

    variant: str
    images: int
    values: int
    different: int
    largest: int

    def __bool__(self) -> bool:
        return self.different == 0

    def to_json(self) -> dict[str, Any]:
        """Returns every field, JSON-ready."""
        return {**asdict(self), "passed": bool(self)}


def pixel_differences(
    checkpoint: Checkpoint, preprocessing: Preprocessing, images: Sequence[Image.Image]
) -> list[PixelDifference]:
    """Prepares every image in every variant both ways, and compares the pixels.

    Args:
        checkpoint: of the image processor.
        preprocessing: of a build's manifest, which a client follows.
        images: of any size.
    """
    processor = by_pillow(checkpoint.processor.image_processor)
    return [_difference(name, processor, preprocessing, images) for name in VARIANTS]


def by_pillow(processor: Any) -> Any:
    """Returns transformers' image processor by Pillow with these settings."""
    import transformers

    name = type(processor).__name__
    pillows = getattr(transformers, f"{name.removesuffix('Fast').removesuffix('Pil')}Pil", None)
    if name.endswith("Pil") or pillows is None:
        return processor
    return pillows.from_dict(processor.to_dict())


def _difference(
    variant: str, processor: Any, preprocessing: Preprocessing, images: Sequence[Image.Image]
) -> PixelDifference:
    differences = []
    for image in images:
        converted = VARIANTS[variant](image)
        actual = pixels_from_image(converted, preprocessing)
        expected = _resize(processor, converted)
        differences.append(np.abs(actual.astype(np.int16) - expected.astype(np.int16)))
    values = np.concatenate([array.ravel() for array in differences])
    return PixelDifference(
        variant=variant,
        images=len(images),
        values=values.size,
        different=int(np.count_nonzero(values)),
        largest=int(values.max()),
    )


def _resize(processor: Any, image: Image.Image) -> Array:
    """Returns the processor's pixels before it rescales and normalises, `[height, width, 3]`."""
    features = processor([image], do_rescale=False, do_normalize=False, return_tensors="np")
    pixels: Array = np.moveaxis(np.asarray(features["pixel_values"][0]), 0, -1)
    return pixels
