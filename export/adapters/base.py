"""Which checkpoint an adapter was trained on, as far as names can say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from iblip.export.adapters.reading import Adapter
from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.checkpoint.directory import ADAPTER_CONFIG, object_from_json
from iblip.export.checkpoint.source import ModelSource
from iblip.export.errors import CheckpointError, OptionError
from iblip.export.families import FAMILIES

_HUB = re.compile(r"[\w.-]+/[\w.-]+")

_IN_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
"""A folder of a model of the hub in the hub's own cache."""


def source_of_base(adapter: Adapter) -> ModelSource:
    """Returns the source of the model that an adapter says it was trained on.

    Raises:
        OptionError: it says none, or a directory that is not here.
    """
    base = adapter.config.base
    if base is None:
        raise OptionError(
            f"--adapter {adapter.name} does not say which model it was trained on. Give it with"
            " --model."
        )
    source = ModelSource(model=base, revision=adapter.config.revision)
    if not (source.is_directory or source.is_on_hub):
        raise OptionError(
            f"--adapter {adapter.name} was trained on {base}, and there is no such directory here."
            " Say with --model where that model is."
        )
    return source if source.is_on_hub else ModelSource(model=base)


def check_base(adapter: Adapter, checkpoint: Checkpoint, source: ModelSource) -> str | None:
    """Compares the model that an adapter was trained on with the one that it is given to.

    Args:
        adapter: that is merged.
        checkpoint: that it is merged into.
        source: of the checkpoint.

    Returns:
        A remark, if the names of both cannot tell whether they are the same.

    Raises:
        CheckpointError: they are different models.
    """
    trained, base = adapter.config.architecture, adapter.config.base
    own = checkpoint.family.architecture
    if trained in FAMILIES and trained != own:
        raise CheckpointError(
            f"--adapter {adapter.name} was trained on a {trained}, and {source.model} is a {own}."
        )
    if base is None:
        return None
    asked, names = _hub_name(base), set(_hub_names(checkpoint, source))
    if asked is not None and asked == _language_model_name(checkpoint):
        return None  # trained on that alone
    if asked is not None and names:
        if asked.lower() in {name.lower() for name in names}:
            return None
        raise CheckpointError(
            f"--adapter {adapter.name} was trained on {asked}, and --model is"
            f" {' or '.join(sorted(names))}. Give the model that it was trained on; if this one is"
            " a copy of that, give --model its directory, without a _name_or_path of another model"
            f" in its config.json; if {asked} was a directory, write this model's name to"
            f" base_model_name_or_path in {adapter.directory / ADAPTER_CONFIG}."
        )
    if _is_same_directory(base, checkpoint, source):
        return None
    if _has_other_config(base, checkpoint):
        raise CheckpointError(
            f"--adapter {adapter.name} was trained on {base}, and --model is {source.model}: their"
            " config.json differ."
        )
    return (
        f"--adapter {adapter.name} was trained on {base}; whether {source.model} is the same model,"
        " their names do not say. Shapes are compared, and its answers with and without the adapter"
        " by `iblip verify`."
    )


def _language_model_name(checkpoint: Checkpoint) -> str | None:
    """What the checkpoint's config calls its language model; an original's is that model's own."""
    if not checkpoint.config_file.exists():
        return None
    config = object_from_json(checkpoint.config_file)
    text = config.get("text_config", config)
    name = text.get("_name_or_path") if isinstance(text, dict) else None
    return name if isinstance(name, str) else None


def _is_same_directory(base: str, checkpoint: Checkpoint, source: ModelSource) -> bool:
    """Whether a path leads to the checkpoint, or is at least called as it is."""
    path = Path(base)
    if path.is_dir():
        return path.resolve() == checkpoint.directory
    return path.name == Path(source.model).name


def _has_other_config(base: str, checkpoint: Checkpoint) -> bool:
    # An original's directory is its language model's, whose config is another.
    files = [Path(base) / "config.json", checkpoint.config_file]
    if hasattr(checkpoint, "parts") or not all(file.is_file() for file in files):
        return False
    one, other = (
        {key: value for key, value in object_from_json(file).items() if key not in UNTELLING}
        for file in files
    )
    return one != other


UNTELLING = frozenset(
    {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "quantization_config"}
)
"""Keys of a `config.json` in which copies of one model may differ."""


def _hub_names(checkpoint: Checkpoint, source: ModelSource) -> Iterator[str]:
    """Names on the hub that the checkpoint is known to have."""
    if source.is_on_hub:
        yield source.model
        return
    if model := getattr(checkpoint, "model", None):  # a row of the table, of an original
        yield from filter(None, [model.hub])
        return
    if name := _hub_name(str(checkpoint.directory)):
        yield name
        return
    config = checkpoint.directory / "config.json"
    said = object_from_json(config).get("_name_or_path") if config.exists() else None
    if isinstance(said, str) and (name := _hub_name(said)):
        yield name


def _hub_name(place: str) -> str | None:
    """The hub's name of a model, from itself or from a path in the hub's cache."""
    if Path(place).is_dir() or Path(place).is_absolute():
        match = next((m for m in map(_IN_CACHE.fullmatch, Path(place).parts) if m), None)
        return f"{match[1]}/{match[2]}" if match else None
    return place if _HUB.fullmatch(place) and place[0] not in "./" else None
