"""Prepares images for a model: decodes them, converts them to RGB, resizes them.

The arithmetic that follows (rescale, normalise) is inside the vision graph. For 8-bit images the
result is bit-equal to transformers' Pillow image processor for InstructBLIP, which equals the
original's. Two steps that it leaves to its caller are done here, because image files are meant to
be seen that way: EXIF orientation is applied, and 16-bit grey is scaled to 8 bits, not clipped.
LAVIS does neither, nor lays transparency over white: `READINGS` has both ways.

This module knows Pillow and numpy only: a client needs nothing else.
"""

from __future__ import annotations

import base64
import contextlib
import inspect
import io
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable
from urllib.parse import unquote, unquote_to_bytes, urlsplit

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from iblip.export.artifact.manifest import Preprocessing
from iblip.export.errors import InputError, OptionError
from iblip.export.messages import did_you_mean, kind_of


@runtime_checkable
class Readable(Protocol):
    """A file opened to read bytes, or what behaves like one: `BytesIO`, an upload."""

    def read(self, size: int = -1, /) -> bytes:
        """The bytes that follow."""
        ...


@runtime_checkable
class Tensor(Protocol):
    """A tensor of PyTorch, which is not imported."""

    @property
    def dtype(self) -> Any:
        """`torch.uint8` is accepted."""
        ...

    @property
    def shape(self) -> Any:
        """`[height, width, 3]` or `[3, height, width]`, several of them in a batch."""
        ...

    def detach(self) -> Any:
        """The tensor without its gradients."""
        ...

    def cpu(self) -> Any:
        """The tensor in this machine's memory."""
        ...


ImageSource = str | Path | bytes | Readable | Image.Image | npt.NDArray[np.uint8] | Tensor
"""A path, an encoded image, a file object, a Pillow image, uint8 `[height, width, 3]` (RGB), or a
PyTorch tensor of `torch.uint8`, `[height, width, 3]` or `[3, height, width]`. A string may also be
a `data:` or `file://` address, or an encoded image in base64."""

ImageSources = ImageSource | Sequence[ImageSource]
"""One image, or several: a list of them, uint8 `[frames, height, width, 3]`, or a tensor with one
more axis before the others."""

MAX_PIXELS = 89_478_485
"""The largest image that is decoded, in pixels: where Pillow starts to warn (256 MiB of RGB)."""

MAX_BYTES = 8 * MAX_PIXELS
"""The largest encoded image that is read: so many pixels of four 16-bit channels, uncompressed."""


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What an encoded image may be; looked at before its pixels are decoded.

    Attributes:
        max_bytes: of the encoded image.
        max_pixels: width times height.
        formats: that are read, by Pillow's names; empty is all that Pillow reads but EPS.
    """

    max_bytes: int = field(default_factory=lambda: MAX_BYTES)
    max_pixels: int = field(default_factory=lambda: MAX_PIXELS)
    formats: tuple[str, ...] = ()


_SHOWN = 80
"""Characters of a string that a message repeats."""

_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{24,}={0,2}", re.ASCII)
"""Base64 in either alphabet, as long as the smallest images."""


Reading = Literal["viewed", "lavis"]
"""How a file becomes RGB: as it is meant to be seen, with transparency over white, as in
transformers; or as in LAVIS, whose examples call Pillow's `convert("RGB")` alone: it ignores EXIF
orientation, drops transparency, and clips more than 8 bits at 255."""

READINGS: tuple[Reading, ...] = get_args(Reading)


def check_reading(reading: str) -> Reading:
    """Returns `reading`.

    Raises:
        OptionError: it is none of `READINGS`.
    """
    for known in READINGS:
        if reading == known:
            return known
    raise OptionError(
        f"preprocessing is {reading!r}; expected {' or '.join(map(repr, READINGS))}."
        f"{did_you_mean(str(reading), READINGS)}"
    )


def check_image(path: Path) -> None:
    """Refuses a file whose beginning is not that of an image; no pixel is decoded.

    Raises:
        InputError: it cannot be read, or is not an image.
    """
    _identified(_bytes_of(path), str(path), ImageLimits())


def pixels_from_image(
    source: ImageSource, preprocessing: Preprocessing, reading: Reading = "viewed"
) -> npt.NDArray[np.uint8]:
    """Returns the image as RGB at the model's size.

    The first frame of an animation is used.

    Args:
        source: the image.
        preprocessing: the model's size and filter.
        reading: how a file or a Pillow image becomes RGB. Arrays and tensors are RGB already.

    Returns:
        uint8 `[height, width, 3]`, C-contiguous.

    Raises:
        InputError: there is no such file; it is not an image, or a damaged or empty one; it has
            more than `MAX_PIXELS`; an array or a tensor has another dtype or shape.
    """
    if isinstance(source, Tensor):
        source = _array(source)
    if isinstance(source, np.ndarray):
        image = _rgb_array(source)
    else:
        opened, name = _opened(source)
        image = CONVERSIONS[reading](opened, name)
    return _resized(image, preprocessing)


def pixels_from_encoded(
    data: bytes,
    preprocessing: Preprocessing,
    reading: Reading = "viewed",
    limits: ImageLimits | None = None,
) -> npt.NDArray[np.uint8]:
    """Returns the pixels of an image that somebody else has sent: no path or address is followed.

    Args:
        data: the encoded image, or as ASCII text its base64 or a `data:` address.
        preprocessing, reading: as in `pixels_from_image`, which returns the same of the same image.
        limits: what it may be.

    Returns:
        uint8 `[height, width, 3]`, C-contiguous.

    Raises:
        InputError: it is not an image, a damaged one, or beyond the limits.
    """
    limits = limits or ImageLimits()
    encoded = _unwrapped(data)
    image, name = _open(encoded, f"the image of {len(encoded):,} bytes", limits)
    return _resized(CONVERSIONS[reading](image, name), preprocessing)


def _resized(image: Image.Image, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    size = (preprocessing.width, preprocessing.height)
    resample = Image.Resampling[preprocessing.resample]
    return np.ascontiguousarray(image.resize(size, resample=resample), dtype=np.uint8)


def each_image(source: ImageSources) -> list[ImageSource]:
    """Returns the images as a list, which has one entry for a single image.

    Raises:
        InputError: a tensor has another dtype or shape than an image or several.
    """
    if isinstance(source, Tensor):
        source = _array(source)
    if isinstance(source, np.ndarray):
        return list(source) if source.ndim == 4 else [source]
    return list(source) if isinstance(source, list | tuple) else [source]  # type: ignore[list-item]


def _array(tensor: Tensor) -> npt.NDArray[np.uint8]:
    """A tensor's image or images as uint8 `[..., height, width, 3]`."""
    shape = list(tensor.shape)
    expected = "expected torch.uint8 [height, width, 3] or [3, height, width] in RGB order"
    found = f"the image tensor is {tensor.dtype} {shape}; {expected}"
    if str(tensor.dtype) != "torch.uint8":
        raise InputError(
            f"{found}. Floats from 0 to 1: (tensor * 255).round().to(torch.uint8). Where a "
            "processor has normalised the tensor, give the image that it was made from."
        )
    if len(shape) not in (3, 4) or 3 not in (shape[-1], shape[-3]):
        raise InputError(f"{found}, or several of them in a batch.")
    array: npt.NDArray[np.uint8] = np.asarray(tensor.detach().cpu())
    return array if shape[-1] == 3 else np.moveaxis(array, -3, -1)


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


Opened = tuple[Image.Image, str]
"""A decoded image, as its file has it, and what messages call it."""


def _opened(source: str | Path | bytes | Readable | Image.Image | Tensor) -> Opened:
    if isinstance(source, Image.Image):
        return _decode(source, "the Pillow image")
    if isinstance(source, bytes | bytearray | memoryview):
        return _open(source, f"the image given as {len(source)} bytes")
    if isinstance(source, str):
        return _from_text(source)
    if isinstance(source, Path):
        return _open(_bytes_of(source), str(source))
    if isinstance(source, Readable):
        name = f"the image in {_shown(repr(source))}"
        return _open(_read(source, name), name)
    expected = "a path, bytes, a file object, a Pillow image, a uint8 array or a torch.uint8 tensor"
    raise InputError(f"an image cannot be {kind_of(source)}; expected {expected}")


def _from_text(source: str) -> Opened:
    if source[:8].lower().startswith(("http://", "https://")):
        raise InputError(
            f"{_shown(source)} is an address; download it first and give the file, or let it be "
            "fetched with image_urls=True"
        )
    if source.startswith("data:"):
        return _open(_data(source), f"the image in {_shown(source)}")
    if source.startswith("file:"):
        return _open(_bytes_of(_path_of_address(source)), _shown(source))
    data = _from_base64(source)
    if data is not None:
        return _open(data, "the image given in base64")
    return _open(_bytes_of(source), _shown(source))


def _from_base64(text: str) -> bytes | None:
    """The bytes, if a string is an image in base64: a path that were one does not occur."""
    text = "".join(text.split())
    if not _BASE64.fullmatch(text):
        return None
    try:
        data = _decode_base64(text)
        Image.open(io.BytesIO(data))
    except (ValueError, UnidentifiedImageError):
        return None
    except Exception:  # it is an image, and `_open` says what is wrong with it
        return data
    return data


def _unwrapped(data: bytes) -> bytes:
    """The encoded image in what was sent. None of the usual formats looks like base64."""
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        return data
    if text[:8].lower().startswith(("http://", "https://", "file:")):
        raise InputError(
            f"the image is the address {_shown(text)}, which is not fetched; send the file's bytes "
            "or their base64"
        )
    if text.startswith("data:"):
        return _data(text)
    joined = "".join(text.split())
    if _BASE64.fullmatch(joined):
        with contextlib.suppress(ValueError):
            return _decode_base64(joined)
    return data


def _bytes_of(path: str | Path) -> bytes:
    """The content of a regular file: a pipe may never come to an end, nor a device."""
    name = _shown(str(path))
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISREG(mode):
            with Path(path).open("rb") as file:
                return _read(file, name)
    except FileNotFoundError:
        raise InputError(f"there is no file {name}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{name} cannot be read: {reason}") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{name} cannot be read: Is a directory")
    raise InputError(
        f"{name} is a device, a pipe or a socket; give a file, or the bytes (on the command line "
        "`-` is standard input)"
    )


def _read(file: Readable, name: str) -> bytes:
    if isinstance(file, io.TextIOBase):
        raise InputError(f'{name} is opened as text; open it with mode "rb"')
    try:
        data: Any = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # a closed file raises the latter
        raise InputError(f"{name} cannot be read: {error}") from error
    if inspect.iscoroutine(data):
        data.close()
        raise InputError(f"{name} is read with await; give what `await file.read()` returns")
    if not isinstance(data, bytes | bytearray):
        raise InputError(f"{name} gives {type(data).__name__}; expected bytes")
    return bytes(data)


def _data(address: str) -> bytes:
    """The bytes of a `data:` address (RFC 2397)."""
    head, comma, content = address.partition(",")
    if not comma:
        raise InputError(f"{_shown(address)} has no comma; expected data:image/png;base64,...")
    if not head.endswith(";base64"):
        return unquote_to_bytes(content)
    try:
        return _decode_base64("".join(unquote(content).split()))
    except ValueError as error:
        raise InputError(f"{_shown(address)} is not base64: {error}") from error


def _decode_base64(text: str) -> bytes:
    """Base64 in either alphabet, with or without the padding at its end."""
    padded = text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4)
    return base64.b64decode(padded.replace("-", "+").replace("_", "/"), validate=True)


def _path_of_address(address: str) -> str:
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise InputError(f"{_shown(address)} is not an address: {error}") from error
    if parts.netloc not in ("", "localhost"):
        raise InputError(f"{_shown(address)} is on another machine; expected file:///path")
    return unquote(parts.path)


def _shown(text: str) -> str:
    """A string for a message, which never repeats megabytes."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text):,} characters)"


def _open(
    data: bytes | bytearray | memoryview, name: str, limits: ImageLimits | None = None
) -> Opened:
    limits = limits or ImageLimits()
    return _decode(_identified(data, name, limits), name, limits)


def _identified(
    data: bytes | bytearray | memoryview, name: str, limits: ImageLimits
) -> Image.Image:
    if not len(data):
        raise InputError(f"{name} is empty: 0 bytes (a file that has been read wants seek(0))")
    if len(data) > limits.max_bytes:
        raise InputError(f"{name} has more than {limits.max_bytes} bytes, the most accepted")
    try:
        image = Image.open(io.BytesIO(data), formats=limits.formats or None)
    except Image.DecompressionBombError:
        raise InputError(
            f"{name} has more than {limits.max_pixels} pixels, the most accepted"
        ) from None
    except UnidentifiedImageError:
        raise _unidentified(data, name, limits.formats) from None
    except Exception as error:  # a damaged header raises whatever its decoder trips over
        raise InputError(f"{name} is damaged: {error}") from error
    if image.format == "EPS":  # a program, which Pillow would let Ghostscript run
        raise InputError(f"{name} is PostScript, which is not run; save it as PNG or JPEG")
    return image


def _unidentified(
    data: bytes | bytearray | memoryview, name: str, formats: tuple[str, ...]
) -> InputError:
    if not formats:
        return InputError(f"{name} is not an image that Pillow can read")
    return InputError(
        f"{name} begins with {bytes(data[:12])!r}, as no format does that is read "
        f"({', '.join(formats)}). Save it in one of these."
    )


def _decode(image: Image.Image, name: str, limits: ImageLimits | None = None) -> Opened:
    most = (limits or ImageLimits()).max_pixels
    width, height = image.size
    if not width or not height:
        raise InputError(f"{name} is empty: {width} x {height} pixels")
    if width * height > most:
        raise InputError(f"{name} has {width} x {height} pixels; at most {most} are accepted")
    try:
        image.load()
    except MemoryError as error:
        raise InputError(f"{name} needs more memory to be decoded than there is") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error ...
        raise InputError(f"{name} is truncated or damaged: {error}") from error
    return image, name


def _as_viewed(image: Image.Image, name: str) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _eight_bits(image, name).convert("RGB")
    if image.mode == "F":
        raise InputError(f"{name} has floating-point pixels; expected 8 or 16 bits a channel")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _as_lavis(image: Image.Image, name: str) -> Image.Image:
    return image.convert("RGB")


CONVERSIONS: Mapping[Reading, Callable[[Image.Image, str], Image.Image]] = {
    "viewed": _as_viewed,
    "lavis": _as_lavis,
}


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    # The high byte, as in Pillow's own conversion of 16-bit colour; that of 16-bit grey clips at
    # 255 and turns nearly every image white.
    grey = np.asarray(image).astype(np.int64)  # [height, width]
    if grey.min() < 0 or grey.max() > 0xFFFF:
        span = f"values from {grey.min()} to {grey.max()}"
        raise InputError(f"{name} has {span}; expected 8 or 16 bits a channel")
    return Image.fromarray((grey >> 8).astype(np.uint8))
