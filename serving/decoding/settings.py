"""What decoding images on the server may cost: the operator's parameters of `instructblip`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

from iblip.export.errors import OptionError
from iblip.export.images import MAX_PIXELS, ImageLimits

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""The formats that are read by default, by Pillow's names."""

MOST_WORKERS = 4
"""Processes, where the operator names no number and the machine has as many cores."""

MOST_CHOSEN = 64
"""Processes that an operator may ask for; each may take a gigabyte."""

WRAPPED = 1.5
"""How much longer, at most, base64 with its line breaks is than the bytes in it."""


@dataclass(frozen=True, kw_only=True)
class DecodingSettings:
    """The limits of encoded images, and what decoding them may take of the machine.

    Attributes:
        image_bytes: of one encoded image.
        image_pixels: of one image, width times height.
        image_seconds: for one image, before the process that decodes it is ended.
        image_workers: processes that decode; 0 is one for each core, at most `MOST_WORKERS`,
            and `MOST_CHOSEN` are the most.
        image_cache_mib: memory for pixels of images that may come again; 0 remembers none.
        image_formats: that are read.

    Raises:
        OptionError: a number is out of range, or there is no format.
    """

    image_bytes: int = 16 << 20
    image_pixels: int = MAX_PIXELS
    image_seconds: int = 10
    image_workers: int = 0
    image_cache_mib: int = 64
    image_formats: tuple[str, ...] = FORMATS

    def __post_init__(self) -> None:
        for name in ("image_bytes", "image_pixels", "image_seconds"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if self.image_cache_mib < 0:
            raise OptionError(f"image_cache_mib is {self.image_cache_mib}; expected 0 or more")
        if not 0 <= self.image_workers <= MOST_CHOSEN:
            raise OptionError(
                f"image_workers is {self.image_workers}; expected 0 (one for each core, at most "
                f"{MOST_WORKERS}) to {MOST_CHOSEN}"
            )
        if not self.image_formats:
            raise OptionError("image_formats is empty; expected Pillow's names, such as JPEG PNG")

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> Self:
        """From the parameters of the model's config; those that are missing have their default.

        Raises:
            OptionError: a parameter is not what it should be.
        """
        given: dict[str, int | tuple[str, ...]] = {}
        for name in (one.name for one in fields(cls)):
            text = parameters.get(name)
            if text is None:
                continue
            if name == "image_formats":
                given[name] = tuple(text.upper().split())
            elif text.isdecimal():
                given[name] = int(text)
            else:
                raise OptionError(f"{name} is {text!r} in config.pbtxt; expected an integer")
        return cls(**given)  # type: ignore[arg-type]

    @property
    def limits(self) -> ImageLimits:
        """Of one image."""
        return ImageLimits(
            max_bytes=self.image_bytes, max_pixels=self.image_pixels, formats=self.image_formats
        )

    @property
    def workers(self) -> int:
        """The number of processes."""
        return self.image_workers or min(MOST_WORKERS, os.cpu_count() or 1)

    @property
    def most_sent(self) -> int:
        """Bytes of one image as it is sent, in whatever wrapping."""
        return int(self.image_bytes * WRAPPED)
