"""Opens the language-model engine of a build."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from engines.language_model.types import LanguageModelEngine
from export.errors import BuildDirectoryError, EngineError
from export.manifest import Manifest

Opener = Callable[[Path, Manifest, int | None], LanguageModelEngine]


def open_engine(
    directory: Path, manifest: Manifest, *, threads: int | None = None
) -> LanguageModelEngine:
    """The engine of a build's language model, loaded and ready.

    Args:
        directory: of the build.
        manifest: of the same build.
        threads: for one operator, on a CPU; `None` takes one per core this process may use.

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
    return opener(directory, manifest, threads)


def _onnxruntime(directory: Path, manifest: Manifest, threads: int | None) -> LanguageModelEngine:
    from engines.language_model.graphs import open_model
    from engines.language_model.onnx_engine import OnnxEngine
    from engines.text import PromptTokenizer

    prompts = PromptTokenizer.from_build(directory, manifest)
    model = open_model(directory, manifest, threads=threads)
    return OnnxEngine(model, prompts, manifest.language_model)


ENGINES: Mapping[str, Opener] = {"onnxruntime": _onnxruntime}
"""Engine kind to what opens it."""
