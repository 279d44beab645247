"""A catalogue asked again after a restart, with the vision cache's directory and without it.

Each round opens the build three times, as a restart does: without a directory, with an empty one,
and with what the second has written.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.builds import build
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.pipeline import Pipeline
from iblip.engines.vision_cache.directory import CacheDirectory, cache_directory
from iblip.export.checkpoint.checkpoint import DEMO
from iblip.export.examples import read_examples
from iblip.export.images import pixels_from_image

IMAGES, ROUNDS = 200, 5
PROMPT = "Describe the image."
WITHOUT, EMPTY, FULL = "without", "empty", "full"


def main(checkpoint: Path, scratch: Path) -> dict[str, Any]:
    """Milliseconds an image until its visual prompt is there, and until its first token is."""
    directory = build(checkpoint, scratch)
    images = [example.image for example in read_examples(DEMO.parent / "heldout")[:IMAGES]]
    times: dict[str, list[tuple[float, float]]] = {WITHOUT: [], EMPTY: [], FULL: []}
    for number in range(ROUNDS):
        path = scratch / f"{checkpoint.name}-cache-{number}"
        for state, runs in times.items():
            cache = None if state == WITHOUT else cache_directory(path)
            runs.append(_milliseconds(directory, images, cache))
    medians = {
        state: [round(statistics.median(column), 2) for column in zip(*runs, strict=True)]
        for state, runs in times.items()
    }
    return {
        "images": len(images),
        "rounds": ROUNDS,
        "visual_prompt_ms": {state: values[0] for state, values in medians.items()},
        "first_token_ms": {state: values[1] for state, values in medians.items()},
    }


def _milliseconds(
    directory: Path, images: list[Path], cache: CacheDirectory | None
) -> tuple[float, float]:
    """Means over the images, whose pixels are there before the clock starts."""
    options = GenerationOptions(max_new_tokens=1)
    with Pipeline(directory, vision_cache=cache) as pipeline:
        settings = pipeline.manifest.preprocessing
        pixels = [pixels_from_image(image, settings) for image in images]
        pipeline.answer(pixels[0], PROMPT, options)  # the first run of an engine is slow
        started, vision_s = time.perf_counter(), 0.0
        for image in pixels[1:]:
            vision_s += pipeline.answer(image, PROMPT, options).timing.vision_s
        total_s = time.perf_counter() - started
    count = len(pixels) - 1
    return vision_s / count * 1e3, total_s / count * 1e3
