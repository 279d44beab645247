"""Opens the language-model engine of a build."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from engines.language_model.types import LanguageModelEngine
from export.errors import BuildDirectoryError, EngineError, OptionError
from export.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """How much an engine takes on. `None` is the engine's own default.

    Attributes:
        slots: sequences at once: a request's every answer or beam is one.
        positions: of a sequence, visual prompt, prompt and answer together; at most the model's.
        queue: requests that may wait.

    Raises:
        OptionError: one is below 1.
    """

    slots: int | None = None
    positions: int | None = None
    queue: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise OptionError(f"{name} is {value}; wanted 1 or more")


Opener = Callable[[Path, Manifest, int | None, EngineLimits], LanguageModelEngine]


def open_engine(
    directory: Path,
    manifest: Manifest,
    *,
    threads: int | None = None,
    limits: EngineLimits | None = None,
) -> LanguageModelEngine:
    """The engine of a build's language model, loaded and ready.

    Args:
        directory: of the build.
        manifest: of the same build.
        threads: for one operator, on a CPU; `None` takes one per core this process may use.
        limits: how much it takes on.

    Raises:
        BuildDirectoryError: the build has no language model, or not all of it.
        EngineError: it cannot be loaded, or was built for an engine that this version lacks.
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
    return opener(directory, manifest, threads, limits or EngineLimits())


def _onnxruntime(
    directory: Path, manifest: Manifest, threads: int | None, limits: EngineLimits
) -> LanguageModelEngine:
    from engines.language_model.graphs import SLOTS, open_model
    from engines.language_model.onnx_engine import QUEUE_LIMIT, OnnxEngine
    from engines.text import PromptTokenizer

    prompts = PromptTokenizer.from_build(directory, manifest)
    slots, queue = limits.slots or SLOTS, limits.queue or QUEUE_LIMIT
    model = open_model(
        directory, manifest, threads=threads, slots=slots, positions=limits.positions
    )
    return OnnxEngine(model, prompts, manifest.language_model, queue_limit=queue)


def _vllm(
    directory: Path, manifest: Manifest, threads: int | None, limits: EngineLimits
) -> LanguageModelEngine:
    from engines.language_model.vllm.opening import open_vllm

    return open_vllm(
        directory,
        manifest,
        threads=threads,
        sequences=limits.slots,
        positions=limits.positions,
        queue=limits.queue,
    )


ENGINES: Mapping[str, Opener] = {"onnxruntime": _onnxruntime, "vllm": _vllm}
"""Engine kind to what opens it."""
