"""The whole model in this process: an image and a prompt in, an answer out.

Verification and benchmarks use it, and it is the shortest way to see a build work. Under Triton
each component runs as a model of its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from iblip.engines.language_model.opening import open_engine
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import Answer, Generation, GenerationRequest, Priority
from iblip.engines.runners import open_runner
from iblip.engines.text.checks import check_images
from iblip.engines.text.instructions import InstructionTokenizer, instruction_tensors
from iblip.engines.vision_cache.cache import VisionCache, VisionCacheStatus
from iblip.engines.vision_cache.directory import CacheDirectory
from iblip.export.artifact.manifest import Manifest
from iblip.export.errors import InputError
from iblip.export.system.paths import PathLike, path_from

if TYPE_CHECKING:
    from iblip.export.images import ImageSources

Array = npt.NDArray[Any]

PLAIN = GenerationOptions()


class Pipeline:
    """A build that runs in this process. A context manager: leaving frees it.

    Args:
        directory: of the build.
        threads: for one operator, on a CPU; `None` takes what suits the graph and the machine.
        device: the GPU's number, from 0, for the engines that run on one.
        manifest: replaces the build's own, to run it on other engines.
        vision_cache: where images that have been encoded are found again by another process.

    Attributes:
        manifest: of the build.

    Raises:
        BuildDirectoryError: the directory is not a build, or is incomplete.
        EngineError (on entering): an engine cannot be loaded.
    """

    def __init__(
        self,
        directory: PathLike,
        threads: int | None = None,
        *,
        device: int = 0,
        manifest: Manifest | None = None,
        vision_cache: CacheDirectory | None = None,
    ) -> None:
        self.manifest = manifest or Manifest.read(directory)
        self._directory = path_from(directory, "directory")
        self._threads, self._device = threads, device
        self._images = VisionCache(self.manifest, directory=vision_cache)
        self._lock = Lock()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            directory, manifest = self._directory, self.manifest
            threads, device = self._threads, self._device
            self._instructions = InstructionTokenizer.from_build(directory, manifest)
            self._vision, self._qformer = (
                stack.enter_context(
                    open_runner(directory, manifest, name, threads=threads, device=device)
                )
                for name in ("vision_encoder", "qformer")
            )
            self._engine = open_engine(directory, manifest, threads=threads, device=device)
            stack.callback(self._engine.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._images.clear()
        self._stack.close()

    def encode_image(self, pixels: Array) -> Array:
        """`image_embeds` `[batch, patches, d_vision]` of `pixels`, uint8 `[batch, h, w, 3]`.

        They stay where the engine put them until numpy reads them.

        Raises:
            ContractError: the pixels have another dtype or size than the contract's.
        """
        return self._vision.infer({"pixels": pixels}, keep=["image_embeds"])["image_embeds"]

    def visual_prompt(
        self,
        image_embeds: Array,
        prompts: Sequence[str],
        options: GenerationOptions = PLAIN,
    ) -> Array:
        """`visual_prompt` `[batch, queries, d_llm]`: each image's features for its prompt.

        Args:
            image_embeds: `[batch, patches, d_vision]`, as `encode_image` returns it.
            prompts: one per image.
            options: say what happens to an instruction that is too long.

        Raises:
            InputError: a prompt is empty or too long, or there is not one for each image.
            OptionError: instructions are to be truncated, and the model reads none.
        """
        if len(prompts) != len(image_embeds):
            raise InputError(f"there are {len(image_embeds)} images and {len(prompts)} prompts")
        text = instruction_tensors(
            self._instructions,
            *prompts,
            truncation=options.truncation,
            max_instruction=options.max_instruction,
        )
        return self._qformer.infer({"image_embeds": image_embeds, **text})["visual_prompt"]

    def submit(
        self,
        images: Array | ImageSources,
        prompt: str,
        options: GenerationOptions | None = None,
        *,
        deadline: float | None = None,
        priority: Priority = "interactive",
    ) -> Generation:
        """Asks one question about one image or several; returns the answer as a stream of events.

        Args:
            images: pixels as the model takes them, uint8 `[h, w, 3]` or `[images, h, w, 3]` of the
                size in `manifest.preprocessing`; or one image or a list of them in any other form
                that a client takes, which are decoded and resized.
            prompt: the question.
            options: how to generate.
            deadline: `time.monotonic()` seconds after which the request is given up.
            priority: whether it goes before others that wait.

        Raises:
            InputError, ContractError: the prompt or an image cannot be used, or there are too many.
            QueueFullError, EngineError: as `LanguageModelEngine.submit`.
        """
        started = time.monotonic()
        options = options or PLAIN
        pixels = self._pixels(images)
        check_images(len(pixels), self.manifest.limits.images)
        embeds = [self._encode_cached(image) for image in pixels]
        # One image's features stay where the vision encoder left them.
        image_embeds = embeds[0] if len(embeds) == 1 else np.concatenate(embeds)
        # visual_prompt: [images, queries, d_llm]
        visual_prompt = self.visual_prompt(image_embeds, [prompt] * len(pixels), options)
        return self._engine.submit(
            GenerationRequest(
                prompt=prompt,
                visual_prompt=visual_prompt,
                options=options,
                deadline=deadline,
                vision_s=time.monotonic() - started,
                priority=priority,
            )
        )

    def answer(
        self, images: Array | ImageSources, prompt: str, options: GenerationOptions | None = None
    ) -> Answer:
        """Asks one question and waits for the answer. Arguments and errors as in `submit`."""
        return self.submit(images, prompt, options).result()

    def vision_cache_status(self) -> VisionCacheStatus:
        """What its vision cache has done since it was opened."""
        return self._images.status()

    def _pixels(self, images: Array | ImageSources) -> Sequence[Array]:
        """Each image `[h, w, 3]`; arrays are pixels already, and are not resized."""
        if isinstance(images, np.ndarray):
            return list(images) if images.ndim == 4 else [images]
        from iblip.export.images import each_image, pixels_from_image  # and Pillow

        settings = self.manifest.preprocessing
        return [pixels_from_image(image, settings) for image in each_image(images)]

    def _encode_cached(self, pixels: Array) -> Array:
        """`encode_image` of one image `[h, w, 3]`, from the cache if it is there."""
        key = self._images.key(pixels)
        with self._lock:  # held while encoding: two questions about a new image encode it once
            embeds = self._images.find(key)
            if embeds is None:
                embeds = self.encode_image(pixels[None])
                self._images.add(key, embeds)
            return embeds
