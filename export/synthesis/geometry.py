"""Builds the config of a row of the table, and the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from iblip.export.checkpoint.checkpoint import MARK
from iblip.export.models.model import Model
from iblip.export.originals.configs import parse_config, whole_config

if TYPE_CHECKING:
    import torch

Shapes = Mapping[str, tuple[int, ...]]

MODEL_TYPES: Mapping[str, str] = {
    "instructblip": "instructblip",
    "blip2": "blip-2",
    "minigpt4": "minigpt4",
}
"""The `model_type` of `config.json`, by name of the family."""

TIED: Mapping[str, tuple[str, ...]] = {
    "t5": (
        "language_model.encoder.embed_tokens.weight",
        "language_model.decoder.embed_tokens.weight",
    ),
}
"""Second names of tied tensors, which checkpoints leave out, by the language model's type."""

HEAD = "language_model.lm_head.weight"
"""The output layer; left out too if it is tied to the embeddings."""


def config_json(model: Model, *, dtype: str, seed: int) -> dict[str, Any]:
    """Returns the content of `config.json`, marked as synthetic."""
    config = {
        **whole_config(model),
        "model_type": MODEL_TYPES[model.family.name],
        "text_config": dict(model.text),
        "dtype": dtype,
        MARK: {"model": model.name, "seed": seed},
    }
    place = image_token_id(model)
    return config if place is None else {**config, "image_token_index": place}


def image_token_id(model: Model) -> int | None:
    """Returns the id of the image's placeholder: the hub's, or the last of the row's vocabulary.

    The hub's Vicuna has rows for tokens that LAVIS's does not have, including `<image>`.
    """
    if model.image_token_id is None:
        return None
    return min(model.image_token_id, int(model.text["vocab_size"]) - 1)


def shapes(model: Model) -> Shapes:
    """Returns the shape of every tensor of `model`, in elements, by transformers' name.

    They are those of transformers' own modules, made without memory.
    """
    tied = set(TIED.get(model.text["model_type"], ()))
    if model.text["tie_word_embeddings"]:
        tied.add(HEAD)
    return {name: tuple(weight.shape) for name, weight in _parameters(model) if name not in tied}


def _parameters(model: Model) -> Iterator[tuple[str, torch.Tensor]]:
    import transformers

    from iblip.export.components.without_memory import without_memory

    config = parse_config(model, config_json(model, dtype="float32", seed=0))
    with without_memory():
        if model.family.processor is None:
            yield from _minigpt4_parameters(model, config)
        else:
            whole = getattr(transformers, model.architecture)(config)
            yield from whole.state_dict(keep_vars=True).items()


def _minigpt4_parameters(model: Model, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields those of MiniGPT-4, which is no class of transformers (`families.minigpt4`)."""
    import torch
    import transformers

    parts: dict[str, torch.nn.Module] = {
        "vision_model": transformers.Blip2VisionModel(config.vision_config),
        "language_model": transformers.LlamaForCausalLM(config.text_config),
        "language_projection": torch.nn.Linear(model.projection[1], model.projection[0]),
    }
    if config.qformer_config is not None:
        parts["qformer"] = transformers.Blip2QFormerModel(config.qformer_config)
        width = config.qformer_config.hidden_size
        yield "query_tokens", torch.empty(1, model.num_query_tokens, width)
    for prefix, part in parts.items():
        for name, weight in part.state_dict(keep_vars=True).items():
            yield f"{prefix}.{name}", weight
