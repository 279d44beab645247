"""The process that decodes images, one after another, from its standard input.

It may run out of memory, stand still or crash by what it is given: `process.py` deals with that. It
opens no file and no connection, and does not run on when the process that started it has ended.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
import warnings
from typing import BinaryIO

from PIL import Image

from iblip.export.artifact.manifest import Preprocessing
from iblip.export.errors import InputError
from iblip.export.images import READINGS, ImageLimits, pixels_from_encoded

HEAD = struct.Struct("<BQ")
"""Of every message: the number of one of `READINGS`, or of a kind below; the bytes that follow."""

READY, PIXELS, REFUSED = range(3)
"""Kinds of messages that this process sends."""

MEMORY_BYTES, PIXEL_BYTES = 1 << 30, 24
"""Memory of this process: so much, and so much for each pixel. 16-bit grey takes 19 bytes (Pillow's
2, two arrays of 8, one of 1), transparency over white 20 (five images of 4)."""


def main() -> None:
    """Reads settings, says that it is ready, and decodes until its input ends."""
    messages, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    settings = json.loads(messages.readline())
    preprocessing = Preprocessing(**settings["preprocessing"])
    limits = ImageLimits(**{**settings["limits"], "formats": tuple(settings["limits"]["formats"])})
    prepare(limits)
    send(replies, READY, b"")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where libraries complain about damaged files
    while head := messages.read(HEAD.size):
        reading, size = HEAD.unpack(head)
        data = messages.read(size)
        try:
            pixels = pixels_from_encoded(data, preprocessing, READINGS[reading], limits)
        except InputError as error:
            send(replies, REFUSED, str(error).encode())
        except Exception as error:  # as with `image.load()`: of whatever a decoder trips over
            text = f"the image of {size:,} bytes cannot be decoded: {type(error).__name__}: {error}"
            send(replies, REFUSED, text.encode())
        else:
            send(replies, PIXELS, pixels.tobytes())


def prepare(limits: ImageLimits) -> None:
    """Bounds the memory of this process, and loads what it will need."""
    most = MEMORY_BYTES + PIXEL_BYTES * limits.max_pixels
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most if hard < 0 else min(most, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = limits.max_pixels  # what has more is refused with our own words
    Image.init()


def send(replies: BinaryIO, kind: int, payload: bytes) -> None:
    """Sends one message."""
    replies.write(HEAD.pack(kind, len(payload)) + payload)
    replies.flush()


if __name__ == "__main__":
    main()
