"""The client's pixels against transformers' own image processor, bit by bit.

The processor is Pillow's: transformers picks the one by torchvision where that is installed, whose
resize differs by 1 on some pixels, and which the originals did not have.
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


def _see_through(image: Image.Image) -> Image.Image:
    clear = image.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(image.size))
    return clear


VARIANTS: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "as it is": lambda image: image,
    "grey": lambda image: image.convert("L"),
    "black and white": lambda image: image.convert("1"),
    "palette": lambda image: image.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE),
    "transparent": _see_through,
    "CMYK": lambda image: image.convert("CMYK"),
    "one pixel": lambda image: image.resize((1, 1)),
    "a line, 1 x 37": lambda image: image.resize((1, 37)),
    "wide, 301 x 7": lambda image: image.resize((301, 7)),
    "tall, 13 x 211": lambda image: image.resize((13, 211)),
    "large, 1024 x 768": lambda image: image.resize((1024, 768)),
}
"""What a picture is turned into before both read it: the modes and sizes that files have."""


@dataclass(frozen=True, kw_only=True)
class PixelDifference:
    """One variant over all pictures. True where every value is the same.

    Attributes:
        variant: a key of `VARIANTS`.
        pictures: how many were read.
        values: how many values there were (a pixel has three).
        different: how many of them differ.
        largest: difference, of 255.
    """

    variant: str
    pictures: int
    values: int
    different: int
    largest: int

    def __bool__(self) -> bool:
        return self.different == 0

    def to_json(self) -> dict[str, Any]:
        """Every field, JSON-ready."""
        return {**asdict(self), "passed": bool(self)}


def pixel_differences(
    checkpoint: Checkpoint, preprocessing: Preprocessing, images: Sequence[Image.Image]
) -> list[PixelDifference]:
    """Reads every image in every variant by both.

    Args:
        checkpoint: whose image processor it is.
        preprocessing: of a build's manifest, by which a client goes.
        images: of any size.
    """
    processor = by_pillow(checkpoint.processor.image_processor)
    return [_difference(name, processor, preprocessing, images) for name in VARIANTS]


def by_pillow(processor: Any) -> Any:
    """transformers' image processor with these settings that works with Pillow alone."""
    import transformers

    name = type(processor).__name__
    pillows = getattr(transformers, f"{name.removesuffix('Fast').removesuffix('Pil')}Pil", None)
    if name.endswith("Pil") or pillows is None:
        return processor
    return pillows.from_dict(processor.to_dict())


def _difference(
    variant: str, processor: Any, preprocessing: Preprocessing, images: Sequence[Image.Image]
) -> PixelDifference:
    apart = []
    for image in images:
        picture = VARIANTS[variant](image)
        found = pixels_from_image(picture, preprocessing)
        wanted = _resized(processor, picture)
        apart.append(np.abs(found.astype(np.int16) - wanted.astype(np.int16)))
    values = np.concatenate([array.ravel() for array in apart])
    return PixelDifference(
        variant=variant,
        pictures=len(images),
        values=values.size,
        different=int(np.count_nonzero(values)),
        largest=int(values.max()),
    )


def _resized(processor: Any, image: Image.Image) -> Array:
    """What the processor has before it rescales and normalises, `[height, width, 3]`."""
    made = processor([image], do_rescale=False, do_normalize=False, return_tensors="np")
    pixels: Array = np.moveaxis(np.asarray(made["pixel_values"][0]), 0, -1)
    return pixels
