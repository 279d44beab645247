"""Prepares images for a model: decodes them, converts them to RGB, resizes them.

The arithmetic that follows (rescale, normalise) is inside the vision graph. For 8-bit images the
result is bit-equal to transformers' Pillow image processor for InstructBLIP, which equals the
original's. Two steps that it leaves to its caller are done here, because image files are meant to
be seen that way: EXIF orientation is applied, and 16-bit grey is scaled to 8 bits, not clipped.

This module knows Pillow and numpy only: a client needs nothing else.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from iblip.export.artifact.manifest import Preprocessing
from iblip.export.errors import InputError

ImageSource = str | Path | bytes | Image.Image | npt.NDArray[np.uint8]
"""A path, an encoded image, a Pillow image, or uint8 `[height, width, 3]` (RGB)."""

ImageSources = ImageSource | Sequence[ImageSource]
"""One image, or several: a list of them, or uint8 `[frames, height, width, 3]`."""

MAX_PIXELS = 89_478_485
"""The largest image that is decoded, in pixels: where Pillow starts to warn (256 MiB of RGB)."""


def pixels_from_image(source: ImageSource, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Returns the image as RGB at the model's size.

    Transparency is laid over white, as in transformers. The first frame of an animation is used.

    Returns:
        uint8 `[height, width, 3]`, C-contiguous.

    Raises:
        InputError: there is no such file; it is not an image, or a damaged or empty one; it has
            more than `MAX_PIXELS`; an array is not uint8 `[height, width, 3]`.
    """
    image = _rgb_array(source) if isinstance(source, np.ndarray) else _rgb(source)
    size = (preprocessing.width, preprocessing.height)
    resample = Image.Resampling[preprocessing.resample]
    return np.ascontiguousarray(image.resize(size, resample=resample), dtype=np.uint8)


def each_image(source: ImageSources) -> list[ImageSource]:
    """Returns the images as a list, which has one entry for a single image."""
    if isinstance(source, np.ndarray):
        return list(source) if source.ndim == 4 else [source]
    return list(source) if isinstance(source, list | tuple) else [source]  # type: ignore[list-item]


def _rgb_array(array: npt.NDArray[Any]) -> Image.Image:
    expected = "expected uint8 [height, width, 3] in RGB order"
    if array.dtype != np.uint8:
        hint = " Floats from 0 to 1: (array * 255).round().astype(numpy.uint8)."
        message = f"the image array is {array.dtype} {list(array.shape)}; {expected}."
        raise InputError(message + (hint if array.dtype.kind == "f" else ""))
    if array.ndim != 3 or array.shape[2] != 3:
        raise InputError(f"the image array has shape {list(array.shape)}; {expected}.")
    if array.size == 0:
        raise InputError(f"the image array is empty (shape {list(array.shape)}); {expected}.")
    return Image.fromarray(np.ascontiguousarray(array))


def _rgb(source: str | Path | bytes | Image.Image) -> Image.Image:
    if isinstance(source, Image.Image):
        return _decode(source, "the Pillow image")
    if isinstance(source, bytes | bytearray | memoryview):
        name = f"the image given as {len(source)} bytes"
        if not len(source):
            raise InputError("the image is empty: 0 bytes were given")
        return _open(io.BytesIO(source), name)
    if isinstance(source, str | Path):
        return _open_path(source)
    expected = "a path, bytes, a Pillow image or a uint8 array"
    raise InputError(f"an image cannot be a {type(source).__name__}; expected {expected}")


def _open_path(source: str | Path) -> Image.Image:
    if str(source).startswith(("http://", "https://")):
        raise InputError(f"{source} is an address; download it first and give the file")
    try:
        data = Path(source).read_bytes()
    except FileNotFoundError:
        raise InputError(f"there is no file {source}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{source} cannot be read: {reason}") from error
    if not data:
        raise InputError(f"{source} is empty (0 bytes)")
    return _open(io.BytesIO(data), str(source))


def _open(file: io.BytesIO, name: str) -> Image.Image:
    try:
        image = Image.open(file)
    except Image.DecompressionBombError:
        raise InputError(f"{name} has more than {MAX_PIXELS} pixels, the most accepted") from None
    except UnidentifiedImageError:
        raise InputError(f"{name} is not an image that Pillow can read") from None
    except Exception as error:  # a damaged header raises whatever its decoder trips over
        raise InputError(f"{name} is damaged: {error}") from error
    return _decode(image, name)


def _decode(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    if not width or not height:
        raise InputError(f"{name} is empty: {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        size = f"{width} x {height} pixels"
        raise InputError(f"{name} has {size}; the most accepted is {MAX_PIXELS} in all")
    try:
        image.load()
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error ...
        raise InputError(f"{name} is truncated or damaged: {error}") from error
    return _as_rgb(ImageOps.exif_transpose(image), name)


def _as_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _eight_bits(image, name).convert("RGB")
    if image.mode == "F":
        raise InputError(f"{name} has floating-point pixels; expected 8 or 16 bits a channel")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    # The high byte, as in Pillow's own conversion of 16-bit colour; that of 16-bit grey clips at
    # 255 and turns nearly every image white.
    grey = np.asarray(image).astype(np.int64)  # [height, width]
    if grey.min() < 0 or grey.max() > 0xFFFF:
        span = f"values from {grey.min()} to {grey.max()}"
        raise InputError(f"{name} has {span}; expected 8 or 16 bits a channel")
    return Image.fromarray((grey >> 8).astype(np.uint8))
