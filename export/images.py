"""An image, from wherever it comes, as the pixels a model wants: decode, RGB, resize.

The arithmetic that follows (rescale, normalise) is inside the vision graph. For 8-bit images the
result is bit-equal to transformers' Pillow image processor for InstructBLIP, which equals the
original's. Two things it leaves to its caller are done here, because a picture file is meant to be
seen that way: EXIF orientation is applied, and 16-bit grey is scaled to 8 bits, not clipped.

Knows Pillow and numpy only: a client needs nothing else.
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
"""The largest picture that is decoded, in pixels: where Pillow starts to warn (256 MiB of RGB)."""


def pixels_from_image(source: ImageSource, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """The picture as RGB at the model's size.

    Transparency is laid over white, as transformers does. Of an animation the first frame is
    taken.

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
    """The image, or each of several."""
    if isinstance(source, np.ndarray):
        return list(source) if source.ndim == 4 else [source]
    return list(source) if isinstance(source, list | tuple) else [source]  # type: ignore[list-item]


def _rgb_array(array: npt.NDArray[Any]) -> Image.Image:
    wanted = "wanted uint8 [height, width, 3] in RGB order"
    if array.dtype != np.uint8:
        hint = " Floats from 0 to 1: (array * 255).round().astype(numpy.uint8)."
        message = f"the image array is {array.dtype} {list(array.shape)}; {wanted}."
        raise InputError(message + (hint if array.dtype.kind == "f" else ""))
    if array.ndim != 3 or array.shape[2] != 3:
        raise InputError(f"the image array has shape {list(array.shape)}; {wanted}.")
    if array.size == 0:
        raise InputError(f"the image array is empty (shape {list(array.shape)}); {wanted}.")
    return Image.fromarray(np.ascontiguousarray(array))


def _rgb(source: str | Path | bytes | Image.Image) -> Image.Image:
    if isinstance(source, Image.Image):
        return _decoded(source, "the Pillow image")
    if isinstance(source, bytes | bytearray | memoryview):
        name = f"the image given as {len(source)} bytes"
        if not len(source):
            raise InputError("the image is empty: 0 bytes were given")
        return _opened(io.BytesIO(source), name)
    if isinstance(source, str | Path):
        return _opened_path(source)
    wanted = "a path, bytes, a Pillow image or a uint8 array"
    raise InputError(f"an image cannot be a {type(source).__name__}; wanted {wanted}")


def _opened_path(source: str | Path) -> Image.Image:
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
    return _opened(io.BytesIO(data), str(source))


def _opened(file: io.BytesIO, name: str) -> Image.Image:
    try:
        image = Image.open(file)
    except Image.DecompressionBombError:
        raise InputError(f"{name} has more than {MAX_PIXELS} pixels, the most accepted") from None
    except UnidentifiedImageError:
        raise InputError(f"{name} is not an image that Pillow can read") from None
    except Exception as error:  # a damaged header raises whatever its decoder trips over
        raise InputError(f"{name} is damaged: {error}") from error
    return _decoded(image, name)


def _decoded(image: Image.Image, name: str) -> Image.Image:
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
        raise InputError(f"{name} has floating-point pixels; wanted 8 or 16 bits a channel")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    # The high byte, as Pillow itself takes of 16-bit colour; its own conversion of 16-bit grey
    # clips at 255 and turns nearly every picture white.
    grey = np.asarray(image).astype(np.int64)  # [height, width]
    if grey.min() < 0 or grey.max() > 0xFFFF:
        span = f"values from {grey.min()} to {grey.max()}"
        raise InputError(f"{name} has {span}; wanted 8 or 16 bits a channel")
    return Image.fromarray((grey >> 8).astype(np.uint8))
