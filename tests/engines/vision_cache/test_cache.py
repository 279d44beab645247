"""Encoded images by content, in memory and on the disk: the same answers as without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import iblip
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.pipeline import Pipeline
from iblip.engines.vision_cache.cache import VisionCache
from iblip.engines.vision_cache.directory import MIB, CacheDirectory, cache_directory
from iblip.engines.vision_cache.memory import RecentArrays
from iblip.export.artifact.manifest import Manifest
from tests.cases import exhaustive

Build = Callable[..., Path]

IMAGES = [np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8) for seed in range(3)]
PRECISIONS = ["fp32", "fp16", "int8", *map(exhaustive, ("bf16", "int4"))]


def ask(build: Path, cache: CacheDirectory | None) -> tuple[list[Any], int]:
    """Answers of a new pipeline to the bit, and how many images it encodes."""
    options = GenerationOptions(min_new_tokens=6, max_new_tokens=6, logprobs=1)
    with Pipeline(build, threads=1, vision_cache=cache) as pipeline:
        encoded, encode = [], pipeline.encode_image

        def counted(pixels: Any) -> Any:
            encoded.append(len(pixels))
            return encode(pixels)

        pipeline.encode_image = counted  # type: ignore[method-assign]
        answers = [pipeline.answer(image, "What is it?", options) for image in IMAGES]
        return [(answer.token_ids, answer.logprobs) for answer in answers], sum(encoded)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_answers_after_a_restart_are_the_same_and_nothing_is_encoded(
    random_build: Build, tmp_path: Path, precision: str
) -> None:
    build = random_build("llama", precision)
    without = ask(build, None)
    assert ask(build, CacheDirectory(tmp_path, MIB)) == without
    assert ask(build, CacheDirectory(tmp_path, MIB)) == (without[0], 0)
    assert without[1] == len(IMAGES)


def test_another_encoder_finds_nothing(random_build: Build, tmp_path: Path) -> None:
    def key(build: Path) -> str:
        return VisionCache(Manifest.read(build)).key(IMAGES[0])

    builds = [random_build("llama"), random_build("llama", "fp16"), random_build("t5")]
    assert len({key(build) for build in builds}) == 3
    manifest = Manifest.read(builds[0])
    vision = manifest.components["vision_encoder"]
    graph = vision.graphs["model"]
    others = [
        replace(vision, graphs={"model": replace(graph, digest="0" * 64)}),
        replace(vision, engine=replace(vision.engine, kind="tensorrt")),
        replace(vision, precision="int8"),
    ]
    keys = {
        VisionCache(
            replace(manifest, components={**manifest.components, "vision_encoder": other})
        ).key(IMAGES[0])
        for other in others
    }
    assert len({*keys, key(builds[0])}) == 4


def test_other_pixels_have_another_key(random_build: Build) -> None:
    cache = VisionCache(Manifest.read(random_build("llama")))
    image = IMAGES[0]
    others = [IMAGES[1], image.reshape(12, 48, 3), image.astype(np.int8), image[::-1]]
    assert len({cache.key(pixels) for pixels in (image, *others)}) == 5
    assert cache.key(np.asfortranarray(image)) == cache.key(image)


def test_the_memory_is_bounded_in_bytes() -> None:
    memory: RecentArrays[np.ndarray] = RecentArrays(100)
    for number in range(4):
        memory.put(number, np.full(30, number, np.uint8))
    assert [memory.get(number) is not None for number in range(4)] == [False, True, True, True]
    memory.get(1)
    memory.put(4, np.zeros(30, np.uint8))
    assert memory.get(1) is not None
    assert memory.get(2) is None
    memory.put(5, np.zeros(101, np.uint8))
    assert memory.get(5) is None
    assert memory.get(4) is not None


def test_hits_misses_and_bytes_are_counted(random_build: Build, tmp_path: Path) -> None:
    directory = CacheDirectory(tmp_path, MIB)
    cache = VisionCache(Manifest.read(random_build("llama")), memory_bytes=0, directory=directory)
    key = cache.key(IMAGES[0])
    assert cache.find(key) is None
    cache.add(key, np.ones((1, 4, 32), np.float32))
    assert cache.find(key) is not None
    status = cache.status()
    assert (status.hits, status.misses) == (1, 1)
    assert status.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_load_and_run_take_a_directory(random_build: Build, tmp_path: Path) -> None:
    build, images = random_build("llama"), tmp_path / "images"
    images.mkdir()
    (images / "not-one.png").write_bytes(b"")
    for name in ("loaded", "run"):
        (tmp_path / name).mkdir()
    with iblip.load(build, vision_cache=tmp_path / "loaded") as model:
        model.ask(IMAGES[0], "What is it?", max_new_tokens=1)
    assert len(list((tmp_path / "loaded").iterdir())) == 1
    from PIL import Image

    Image.fromarray(IMAGES[1]).save(images / "one.png")
    output = tmp_path / "out.jsonl"
    cached = {"vision_cache": tmp_path / "run", "prompt": "What?", "max_new_tokens": 1}
    iblip.run(images, output, build=build, **cached)
    assert len(list((tmp_path / "run").iterdir())) == 1
    with pytest.raises(iblip.OptionError, match="without build"):
        iblip.run(images, output, url="127.0.0.1:1", **cached)
    assert cache_directory(tmp_path / "run") is not None
