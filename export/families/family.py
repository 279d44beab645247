"""`Family`: what is particular to a kind of model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from iblip.export.artifact.manifest import Images

Projector = Literal["instruction_qformer", "qformer", "patch_merge"]
"""What makes a visual prompt of an image's features: a Q-Former that reads the instruction, one
that does not, or a linear layer over neighbouring patches."""


def config_by_transformers(directory: Path) -> Any:
    """The config in `directory`, of the class that its `model_type` names."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(directory, local_files_only=True)


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of checkpoint, and what is particular to it.

    Attributes:
        name: `instructblip`.
        architecture: as `config.json` names it; where transformers has the model, its class.
        processor: transformers' class for it, by name; `None` where transformers has neither
            processor nor model, but the parts of both.
        config: reads `config.json` in a directory into what `Checkpoint.config` is.
        projector: see `Projector`. A checkpoint whose config has no Q-Former merges patches.
        images: see `export.artifact.manifest.Images`.
        prompt_template: what stands around a user's `{prompt}`, and where the `{image}` is; a
            checkpoint's config may say otherwise.
        stop: strings that end an answer; a checkpoint's config may say otherwise.
        marks_image: a token of the tokenizer stands for the image in prompts to transformers.
        ends_as_configured: the language model's config says which token ends an answer, whatever
            the tokenizer's end-of-sequence token is.
        max_new_tokens: of an answer, where the generation config is silent.
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
