"""Opens the checkpoint that `--model` names; `READERS` has a row for each form but a directory."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from iblip.export.artifact.manifest import Manifest
from iblip.export.checkpoint.source import AdapterName, ModelSource, adapters_from_words
from iblip.export.errors import CheckpointError, OptionError
from iblip.export.messages import closest
from iblip.export.progress import Progress
from iblip.export.system.paths import PathLike

if TYPE_CHECKING:
    from iblip.export.checkpoint.checkpoint import Checkpoint

Reader = Callable[[ModelSource, Progress], "Checkpoint"]


def _open_original(source: ModelSource, progress: Progress) -> Checkpoint:
    from iblip.export.originals.reading import checkpoint_from_original

    scheme, _, name = source.model.partition(":")
    return checkpoint_from_original(scheme, name, source.parts, source.lora_alpha)


READERS: Mapping[str, Reader] = {"lavis": _open_original, "minigpt4": _open_original}
"""Functions that open a model, by scheme."""


def checkpoint_from_source(
    source: ModelSource, progress: Progress, *, weights: bool = True
) -> Checkpoint:
    """Opens the checkpoint that `source` names. No weight is read.

    Args:
        source: of the checkpoint.
        progress: reports a download.
        weights: whether the weights of a model of the hub are downloaded. Otherwise only their
            headers are, and the checkpoint's files may not be there yet.

    Returns:
        The checkpoint. Its own `source` opens the same one again, from any directory.

    Raises:
        OptionError: there is no such directory, an option that this kind of source does not have,
            or an unknown scheme.
        CheckpointError: the checkpoint is missing, incomplete, damaged or not supported.
    """
    from iblip.export.checkpoint.image_size import at_image_size
    from iblip.export.dequantisation.methods import methods_of

    check_source(source)
    _load_libraries(progress)
    checkpoint = _find_reader(source, weights)(source, progress)
    if checkpoint.source is None:
        checkpoint = replace(checkpoint, source=_with_absolute_parts(source))
    if quantised := methods_of(checkpoint.tensors.values()):
        progress.note(f"{checkpoint.name}: {quantised}; each is dequantised when it is read")
    if source.image_size:
        checkpoint = at_image_size(checkpoint, source.image_size)
    if source.adapters:
        checkpoint = _merge_adapters(checkpoint, source, progress, weights)
    return checkpoint


def _merge_adapters(
    checkpoint: Checkpoint, source: ModelSource, progress: Progress, weights: bool
) -> Checkpoint:
    from iblip.export.adapters.adapted import adapt
    from iblip.export.adapters.base import check_base
    from iblip.export.adapters.reading import adapter_from_name

    adapters = [adapter_from_name(name, progress, weights=weights) for name in source.adapters]
    for adapter in adapters:
        if remark := check_base(adapter, checkpoint, source):
            progress.note(remark)
    opened = replace(checkpoint.source or source, adapters=tuple(a.name for a in adapters))
    return replace(adapt(checkpoint, adapters), source=opened)


def source_of_adapters(names: Sequence[AdapterName], progress: Progress) -> ModelSource:
    """Returns the source of the model that the first of these adapters was trained on.

    Args:
        names: of one adapter or more.
        progress: reports a download; of the hub no more than configs and headers are read.

    Raises:
        OptionError: an adapter is not there, or does not say what it was trained on.
        CheckpointError: it cannot be read or downloaded.
    """
    from iblip.export.adapters.base import source_of_base
    from iblip.export.adapters.reading import adapter_from_name

    base = source_of_base(adapter_from_name(names[0], progress, weights=False))
    progress.note(f"--model is not given: {base.model} is what {names[0]} was trained on")
    return replace(base, adapters=tuple(names))


CONFIGS = ("config.json", "adapter_config.json")
"""One of them is in every checkpoint in Hugging Face form; `open_checkpoint` refuses an adapter."""


def check_source(source: ModelSource) -> None:
    """Refuses a source that cannot be opened, without loading anything.

    Raises:
        OptionError: there is no such directory, an option that this kind of source does not have,
            or an unknown scheme.
        CheckpointError: the directory is none of a checkpoint.
    """
    if source.scheme is None and not source.is_directory and not source.is_on_hub:
        raise OptionError(
            f"there is no checkpoint directory {Path(source.model).absolute()}."
            f"{_suggest(source.model)} Give --model a local Hugging Face directory (with"
            " config.json and weights), or the name of a model of the hub (ORG/NAME)."
        )
    if source.scheme is not None and source.scheme not in READERS:
        raise OptionError(
            f"--model {source.model}: there is no reader for {source.scheme}:; known: {_schemes()}."
            " Give a Hugging Face directory instead."
        )
    if source.is_directory and not any((Path(source.model) / name).exists() for name in CONFIGS):
        raise CheckpointError(
            f"{Path(source.model).absolute()} is not a Hugging Face checkpoint: it has no"
            f" {CONFIGS[0]}. Give --model the directory that has one."
        )
    if source.parts and source.scheme is None:
        raise OptionError(
            f"--part is for models whose files lie apart ({_schemes()});"
            f" {source.model} is one directory"
        )
    if source.lora_alpha and source.scheme is None:
        raise OptionError(
            f"--lora-alpha is for LoRA inside of an original's file ({_schemes()}); {source.model}"
            " is one directory. An adapter of peft, which says its own, is given with --adapter."
        )
    if source.revision is not None and not source.is_on_hub:
        raise OptionError(f"--revision is for models of the hub; {source.model} is none")


def _find_reader(source: ModelSource, weights: bool) -> Reader:
    if source.scheme is None:
        return partial(_open_hub, weights=weights) if source.is_on_hub else _open_directory
    return READERS[source.scheme]


def _load_libraries(progress: Progress) -> None:
    """Loads what every checkpoint needs, which takes seconds, and says so."""
    if {"torch", "transformers"} <= sys.modules.keys():
        return
    with progress.stage("load torch and transformers"):
        import torch  # noqa: F401
        import transformers  # noqa: F401


def _schemes() -> str:
    return ", ".join(f"{scheme}:" for scheme in READERS) or "none"


def _with_absolute_parts(source: ModelSource) -> ModelSource:
    parts = {name: path.absolute() for name, path in source.parts.items()}
    return replace(source, parts=parts)


def _open_hub(source: ModelSource, progress: Progress, weights: bool) -> Checkpoint:
    """Opens a model of the hub; its own `source` has the commit, whatever branch was asked for."""
    from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
    from iblip.export.checkpoint.hub import directory_from_hub

    snapshot = directory_from_hub(source.model, source.revision, progress, weights=weights)
    checkpoint = checkpoint_from_directory(snapshot.directory, snapshot.pieces)
    if snapshot.pieces:
        checkpoint = _with_shapes(checkpoint)
    return replace(checkpoint, source=replace(source, revision=snapshot.commit))


def _with_shapes(checkpoint: Checkpoint) -> Checkpoint:
    """Gives quantised weights, whose shape is no part of a file's header, that of the graphs."""
    from iblip.export.components.graphs_of_checkpoint import components_from_checkpoint
    from iblip.export.dequantisation.bitsandbytes import FourBits
    from iblip.export.originals.joining import expected_tensors
    from iblip.export.precision import PrecisionPolicy

    tensors = dict(checkpoint.tensors)
    flat = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, FourBits)}
    if not flat:
        return checkpoint
    shapes, _ = expected_tensors(components_from_checkpoint(checkpoint, PrecisionPolicy()))
    for name, tensor in flat.items():
        if math.prod(shapes.get(name, ())) == math.prod(tensor.shape):
            tensors[name] = replace(tensor, shape=shapes[name])
    return replace(checkpoint, tensors=tensors)


def _open_directory(source: ModelSource, progress: Progress) -> Checkpoint:
    from iblip.export.checkpoint.checkpoint import checkpoint_from_directory

    checkpoint = checkpoint_from_directory(Path(source.model))
    return replace(checkpoint, source=replace(source, model=str(checkpoint.directory)))


def _suggest(word: str) -> str:
    """The sentence for a released model that was named without its organisation, or misspelt."""
    from iblip.export.models.table import MODELS

    near = closest(word, MODELS)
    return "" if near is None else f" Did you mean {(MODELS[near].hub or MODELS[near].original)!r}?"


def source_of_build(
    directory: Path,
    model: str | None = None,
    revision: str | None = None,
    parts: Mapping[str, Path] | None = None,
    adapters: Iterable[PathLike] = (),
) -> ModelSource:
    """Returns the source of the build in `directory`, or where it is now.

    Args:
        directory: of the build.
        model, revision: override the manifest's.
        parts: override the manifest's of the same names.
        adapters: override the manifest's, all of them.

    Raises:
        BuildDirectoryError: the directory is not a build.
    """
    source = ModelSource.from_json(Manifest.read(directory).source)
    if model is not None:
        source = replace(source, model=model, revision=None, parts={})
    return replace(
        source,
        revision=revision or source.revision,
        parts={**source.parts, **(parts or {})},
        adapters=adapters_from_words(adapters) or source.adapters,
    )
