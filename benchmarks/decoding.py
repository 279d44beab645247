"""Image files decoded a second: in this process, by one process apart, and by all of them."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from iblip.export.artifact.manifest import Preprocessing
from iblip.export.images import pixels_from_encoded
from iblip.serving.decoding.pool import Decoders
from iblip.serving.decoding.process import DecoderProcess
from iblip.serving.decoding.settings import DecodingSettings

ORIGINAL = Preprocessing(height=224, width=224, resample="BICUBIC")
"""As the released models want it."""

SECONDS = 4.0
"""For each way and kind of file."""

SIZES = {"640 x 480": (640, 480), "1600 x 1200": (1600, 1200), "4000 x 3000": (4000, 3000)}
KINDS: dict[str, dict[str, Any]] = {"JPEG": {"quality": 90}, "PNG": {}, "WEBP": {"quality": 80}}


def main(checkpoint: Path, scratch: Path) -> dict[str, Any]:
    """Files a second, by format and size; the checkpoint is not used."""
    settings = DecodingSettings(image_bytes=64 << 20, image_cache_mib=0)
    process, decoders = DecoderProcess(ORIGINAL, settings), Decoders(ORIGINAL, settings)
    with ThreadPoolExecutor(decoders.count) as pool:

        def by_all(data: bytes) -> int:
            turns = [pool.submit(decoders.pixels, [data], "viewed") for _ in range(decoders.count)]
            return len([turn.result() for turn in turns])

        ways: dict[str, Callable[[bytes], object]] = {
            "in this process": lambda data: pixels_from_encoded(data, ORIGINAL),
            "in a process apart": lambda data: process.decode(data, "viewed"),
            f"in {decoders.count} processes apart": by_all,
        }
        figures: dict[str, Any] = {}
        for kind, options in KINDS.items():
            for title, size in SIZES.items():
                data = photo(*size, kind, **options)
                rates = {way: rate(work, data) for way, work in ways.items()}
                figures[f"{kind} {title}"] = {"kB": len(data) // 1000, **rates}
    process.close()
    decoders.close()
    return figures


def rate(work: Callable[[bytes], object], data: bytes) -> float:
    """Files a second, after one that is not counted; `work` may return how many it did."""
    work(data)
    count, began = 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < SECONDS:
        done = work(data)
        count += done if isinstance(done, int) else 1
    return round(count / seconds, 1)


def photo(width: int, height: int, kind: str, **options: Any) -> bytes:
    """A picture with large shapes and the noise of a camera."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (12, 16, 3), np.uint8)
    shapes = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = random.normal(0, 6, (height, width, 3))
    pixels = np.clip(np.asarray(shapes) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()
