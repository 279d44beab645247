"""`Family`: the properties of a kind of model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from iblip.export.artifact.manifest import Images

Projector = Literal["instruction_qformer", "qformer", "patch_merge"]
"""The module from image features to a visual prompt: a Q-Former that reads the instruction, one
that does not, or a linear layer over neighbouring patches."""


def config_by_transformers(directory: Path) -> Any:
    """Reads the config in `directory`, of the class that its `model_type` names."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(directory, local_files_only=True)


@dataclass(frozen=True, kw_only=True)
class Family:
    """The properties of a kind of checkpoint.

    Attributes:
        name: `instructblip`.
        architecture: as `config.json` names it; transformers' class, if it has the model.
        processor: name of transformers' class; `None` if transformers has neither processor nor
            model, but the parts of both.
        config: reads `config.json` in a directory into what `Checkpoint.config` is.
        projector: see `Projector`. A checkpoint whose config has no Q-Former merges patches.
        images: see `export.artifact.manifest.Images`.
        prompt_template: text around a user's `{prompt}`, with the place of the `{image}`; a
            checkpoint's config may override it.
        stop: strings that end an answer; a checkpoint's config may override them.
        marks_image: whether a token stands for the image in prompts to transformers.
        ends_as_configured: whether the language model's config, not the tokenizer, says which token
            ends an answer.
        max_new_tokens: of an answer, if the generation config does not say.
    """

    name: str
    architecture: str
    processor: str | None
    config: Callable[[Path], Any] = config_by_transformers
    projector: Projector
    images: Images
    prompt_template: str
    stop: tuple[str, ...] = ()
    marks_image: bool = True
    ends_as_configured: bool
    max_new_tokens: int
