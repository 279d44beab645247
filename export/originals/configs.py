"""The config of an original, in transformers' form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iblip.export.errors import CheckpointError
from iblip.export.families.minigpt4 import (
    LLAMA2_TEMPLATE,
    VICUNA_STOP,
    VICUNA_TEMPLATE,
    minigpt4_config,
)
from iblip.export.models.model import Model

TRAINED: Mapping[str, tuple[str, ...]] = {
    "t5": ("dense_act_fn",),
    "opt": ("eos_token_id",),
}
"""By type of language model: what the original changes about its config."""


def config_of(model: Model, language_model: Path) -> Any:
    """The config of `model`, with what `config.json` in `language_model` says of that part.

    Raises:
        CheckpointError: that config cannot be read, or is of another type of language model.
    """
    from transformers import AutoConfig

    try:
        found = AutoConfig.from_pretrained(language_model, local_files_only=True)
    except Exception as error:
        raise CheckpointError(
            f"--part language_model={language_model} has no usable config.json: {error}"
        ) from error
    wanted = model.text["model_type"]
    if found.model_type != wanted:
        raise CheckpointError(
            f"--part language_model={language_model} holds a {found.model_type}; {model.name} is"
            f" on a {wanted} ({model.files['language_model']})"
        )
    changes = {field: model.text[field] for field in TRAINED.get(wanted, ())}
    text = {**found.to_dict(), **changes}
    return parsed(model, {**whole_config(model), "text_config": text})


def config_from_file(model: Model, path: Path) -> Any:
    """The config that `--part config` gives.

    Raises:
        CheckpointError: it is no config in transformers' form of `model`'s architecture.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"--part config={path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"--part config={path} holds a {type(data).__name__}, no object")
    return parsed(model, data)


def parsed(model: Model, data: Mapping[str, Any]) -> Any:
    """The object for a whole `config.json`.

    Raises:
        CheckpointError: it is of another architecture than `model`, or a part of it is missing.
    """
    import transformers

    found = (data.get("architectures") or ["none"])[0]
    if found != model.architecture:
        raise CheckpointError(
            f"--part config is of a {found}; {model.name} is a {model.architecture}"
        )
    if model.family.processor is None:
        return minigpt4_config(data)
    name = model.architecture.replace("ForConditionalGeneration", "Config")
    try:
        return getattr(transformers, name).from_dict(dict(data))
    except Exception as error:
        raise CheckpointError(f"--part config is no {name}: {error}") from error


def whole_config(model: Model) -> dict[str, Any]:
    """All but the language model's part."""
    whole: dict[str, Any] = {
        "architectures": [model.architecture],
        "vision_config": dict(model.vision),
        "qformer_config": None if model.qformer is None else dict(model.qformer),
        "num_query_tokens": model.num_query_tokens,
    }
    if model.family.processor is not None:
        return whole
    merges = model.merged_patches is not None
    return {
        **whole,
        "merged_patches": model.merged_patches,
        "prompt_template": LLAMA2_TEMPLATE if merges else VICUNA_TEMPLATE,
        "stop": [] if merges else list(VICUNA_STOP),
    }
