"""Builds the config of an original in transformers' form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iblip.export.dequantisation.methods import KEY
from iblip.export.errors import CheckpointError
from iblip.export.families.minigpt4 import minigpt4_config
from iblip.export.models.model import Model
from iblip.export.system.files import refuse_irregular
from iblip.export.system.json_text import parse_json

TRAINED: Mapping[str, tuple[str, ...]] = {
    "t5": ("dense_act_fn",),
    "opt": ("eos_token_id",),
}
"""Fields of the language model's config that the original changes, by `model_type`."""


def config_of(model: Model, language_model: Path) -> Any:
    """Returns the config of `model`, with the part of the language model from its `config.json`.

    Raises:
        CheckpointError: that config cannot be read, or is of another type of language model.
    """
    from transformers import AutoConfig

    try:
        text_config = AutoConfig.from_pretrained(language_model, local_files_only=True)
    except Exception as error:
        raise CheckpointError(
            f"--part language_model={language_model} has no usable config.json: {error}"
        ) from error
    kind = model.text["model_type"]
    if text_config.model_type != kind:
        raise CheckpointError(
            f"--part language_model={language_model} holds a {text_config.model_type}; {model.name}"
            f" is on a {kind} ({model.files['language_model']})"
        )
    changes = {field: model.text[field] for field in TRAINED.get(kind, ())}
    text = {**text_config.to_dict(), **changes}
    text.pop(KEY, None)  # the graphs read floats
    return parse_config(model, {**whole_config(model), "text_config": text})


def config_from_file(model: Model, path: Path) -> Any:
    """Reads the config that `--part config` names.

    Raises:
        CheckpointError: it is no config in transformers' form of `model`'s architecture.
    """
    try:
        refuse_irregular(path)
        data = parse_json(path.read_text(encoding="utf-8"), unique=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"--part config={path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"--part config={path} holds a {type(data).__name__}, no object")
    return parse_config(model, data)


def parse_config(model: Model, data: Mapping[str, Any]) -> Any:
    """Returns transformers' config object for the content of a `config.json`.

    Raises:
        CheckpointError: it is of another architecture than `model`, or a part of it is missing.
    """
    import transformers

    architectures = data.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else "none"
    if architecture != model.architecture:
        raise CheckpointError(
            f"--part config is of a {architecture}; {model.name} is a {model.architecture}"
        )
    name = model.architecture.replace("ForConditionalGeneration", "Config")
    try:
        if model.family.processor is None:
            return minigpt4_config(data)
        return getattr(transformers, name).from_dict(dict(data))
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"--part config is no {name}: {error}") from error


def whole_config(model: Model) -> dict[str, Any]:
    """Returns the content of `config.json` without the language model's part."""
    whole: dict[str, Any] = {
        "architectures": [model.architecture],
        "vision_config": dict(model.vision),
        "qformer_config": None if model.qformer is None else dict(model.qformer),
        "num_query_tokens": model.num_query_tokens,
    }
    if model.family.processor is not None:
        return whole
    family = model.family
    return {
        **whole,
        "merged_patches": model.merged_patches,
        "prompt_template": model.prompt_template or family.prompt_template,
        "stop": list(family.stop if model.stop is None else model.stop),
    }
