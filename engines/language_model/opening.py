"""Opens the language-model engine of a build."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from iblip.engines.free_memory import check_free_memory
from iblip.engines.kinds import OPENVINO
from iblip.engines.language_model.types import LanguageModelEngine
from iblip.engines.runners import Place
from iblip.export.artifact.manifest import Manifest, ServingLimits
from iblip.export.errors import BuildDirectoryError, EngineError, OptionError


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """How much an engine takes on. `None` is the build's own limit.

    Attributes:
        slots: sequences that run at once; every answer or beam of a request is one.
        positions: length of a sequence: visual prompt, prompt and answer together; at most the
            model's.
        queue: requests that may wait.
        prefix_cache: whether a prompt reuses keys and values of a prefix that was read before.

    Raises:
        OptionError: a limit is below 1.
    """

    slots: int | None = None
    positions: int | None = None
    queue: int | None = None
    prefix_cache: bool | None = None

    def __post_init__(self) -> None:
        for name in ("slots", "positions", "queue"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name} is {value}; expected 1 or more")


Opener = Callable[[Path, Manifest, Place, ServingLimits], LanguageModelEngine]


def open_engine(
    directory: Path,
    manifest: Manifest,
    *,
    threads: int | None = None,
    device: int = 0,
    limits: EngineLimits | None = None,
) -> LanguageModelEngine:
    """The engine of a build's language model, loaded and ready.

    Args:
        directory: of the build.
        manifest: of the same build.
        threads: for one operator, on a CPU; `None` takes what suits the graph and the machine.
        device: the GPU's number, from 0, if the engine runs on one.
        limits: how much it takes on, if that differs from the build's limits.

    Raises:
        OptionError: a sequence would have more positions than the model.
        BuildDirectoryError: the build has no language model, or not all of it.
        EngineError: the engine cannot be loaded, this version does not have it, its GPU has too
            little free memory, or it chooses its GPUs itself and `device` is not 0.
    """
    record = manifest.components.get("language_model")
    if record is None:
        raise BuildDirectoryError(f"the build in {directory} has no language_model")
    opener = ENGINES.get(record.engine.kind)
    if opener is None:
        raise EngineError(
            f"the language model was built for {record.engine.kind!r}; "
            f"this version runs {', '.join(ENGINES)}. Build it again."
        )
    place = Place(threads=threads, device=device)
    return opener(directory, manifest, place, _fill_limits(limits or EngineLimits(), manifest))


def _fill_limits(limits: EngineLimits, manifest: Manifest) -> ServingLimits:
    """The limits, with the build's own in the place of `None`."""
    built, longest = manifest.limits, manifest.language_model.most_positions
    positions = limits.positions or built.max_length
    if positions > longest:
        raise OptionError(
            f"max_length is {positions}; this model has {longest} positions: lower it"
        )
    return ServingLimits(
        slots=limits.slots or built.slots,
        max_length=positions,
        queue=limits.queue or built.queue,
        images=built.images,
        prefix_cache=built.prefix_cache if limits.prefix_cache is None else limits.prefix_cache,
    )


def _open_onnxruntime(
    directory: Path, manifest: Manifest, place: Place, limits: ServingLimits
) -> LanguageModelEngine:
    from iblip.engines.language_model.onnx.engine import OnnxEngine
    from iblip.engines.language_model.onnx.opening import open_model
    from iblip.engines.text.prompts import PromptTokenizer

    check_free_memory(
        manifest,
        "language_model",
        place.device,
        slots=limits.slots,
        positions=limits.max_length,
    )
    prompts = PromptTokenizer.from_build(directory, manifest, max_length=limits.max_length)
    model = open_model(
        directory,
        manifest,
        threads=place.threads,
        device=place.device,
        slots=limits.slots,
        positions=limits.max_length,
        prefix_cache=limits.prefix_cache,
    )
    return OnnxEngine(
        model,
        prompts,
        manifest.language_model,
        queue_limit=limits.queue,
        stop=manifest.text.stop,
    )


def _open_vllm(
    directory: Path, manifest: Manifest, place: Place, limits: ServingLimits
) -> LanguageModelEngine:
    from iblip.engines.language_model.vllm.opening import open_vllm

    if place.device:
        raise EngineError(
            f"the language model was given GPU {place.device}, but vLLM takes the first ones that "
            "it finds. Choose them with CUDA_VISIBLE_DEVICES, and give the language model GPU 0."
        )
    return open_vllm(directory, manifest, limits, threads=place.threads)


ENGINES: Mapping[str, Opener] = {
    "onnxruntime": _open_onnxruntime,
    "onnxruntime-cuda": _open_onnxruntime,
    OPENVINO: _open_onnxruntime,
    "vllm": _open_vllm,
}
"""Engine kind to the function that opens it."""
