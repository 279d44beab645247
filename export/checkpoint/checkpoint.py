"""A checkpoint on disk: its config, its tensors, its processor. No weight is read here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from iblip.export.checkpoint.directory import (
    object_from_json,
    refuse_adapter,
    tensors_from_directory,
)
from iblip.export.checkpoint.source import ModelSource
from iblip.export.errors import CheckpointError
from iblip.export.families import FAMILIES
from iblip.export.families.family import Family, Projector
from iblip.export.families.parts import Parts
from iblip.export.system.files import sha256
from iblip.export.weights.weight import Weight

DEMO = Path(__file__).resolve().parents[2] / "checkpoints" / "instructblip-demo-vicuna"
"""Built where no `--model` is given."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A Hugging Face checkpoint directory.

    Attributes:
        directory: absolute.
        family: a value of `FAMILIES`.
        config: the parsed config (`InstructBlipConfig`, `Blip2Config`, `MiniGPT4Config`).
        tensors: by name.
        source: what opens the same one again; `None` where it was not opened by one.
        synthetic: its weights are random (`export.synthesis`).
    """

    directory: Path
    family: Family
    config: Any
    tensors: Mapping[str, Weight]
    source: ModelSource | None = None
    synthetic: bool = False

    @property
    def name(self) -> str:
        """The source's, or the directory's own."""
        return self.source.name if self.source else self.directory.name

    @property
    def projector(self) -> Projector:
        """What makes its visual prompts: its family's Q-Former, or none."""
        return "patch_merge" if self.config.qformer_config is None else self.family.projector

    @property
    def prompt_template(self) -> str:
        """What stands around a user's `{prompt}`, and where the `{image}` is."""
        template: str = getattr(self.config, "prompt_template", self.family.prompt_template)
        return template

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end any answer."""
        stop: tuple[str, ...] = getattr(self.config, "stop", self.family.stop)
        return stop

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the tensors lie in, in order of name."""
        sources = (source for tensor in self.tensors.values() for source in tensor.sources)
        return tuple(sorted({source.file for source in sources}))

    @cached_property
    def processor(self) -> Any:
        """transformers' own processor of this checkpoint, or its parts where there is none.

        It resizes pictures to what the model takes, whatever size its own file names.

        Raises:
            CheckpointError: it cannot be loaded, or gives an image other places in the prompt than
                the model has query tokens.
        """
        import transformers

        name = self.family.processor
        kind: Any = Parts if name is None else getattr(transformers, name)
        try:
            processor = kind.from_pretrained(self.directory, local_files_only=True)
        except Exception as error:
            message = f"the processor in {self.directory} cannot be loaded: {error}"
            raise CheckpointError(message) from error
        found, wanted = getattr(processor, "num_query_tokens", None), self.config.num_query_tokens
        if name is not None and found != wanted:
            raise CheckpointError(
                f"the processor in {self.directory} has num_query_tokens {found}, and the model"
                f" {wanted}. Set it to {wanted} in processor_config.json (older versions of"
                " transformers did not write it)."
            )
        resize(processor.image_processor, self.config.vision_config.image_size)
        return processor

    def digests(self, known: Mapping[Path, str] | None = None) -> dict[str, str]:
        """sha256 of the config and of every weights file, in hexadecimal, by file name.

        `known` are those that have been taken already.
        """
        paths = (self.directory / "config.json", *self.files)
        return {path.name: (known or {}).get(path) or sha256(path) for path in paths}


def resize(image_processor: Any, side: int) -> None:
    """Has `image_processor` make squares of `side` pixels.

    One that crops is left alone: `export.checkpoint.facts.preprocessing` refuses it.
    """
    if {"height", "width"} <= image_processor.to_dict()["size"].keys():
        image_processor.size = {"height": side, "width": side}


def checkpoint_from_directory(directory: Path) -> Checkpoint:
    """Opens the Hugging Face checkpoint in `directory`.

    Raises:
        CheckpointError: the directory or one of its files is missing, truncated, or of an
            architecture that is not in `FAMILIES`.
    """
    directory = directory.resolve()
    if not directory.is_dir():
        raise CheckpointError(
            f"there is no checkpoint directory {directory}. Give --model a local Hugging Face"
            " directory (with config.json and model.safetensors)."
        )
    refuse_adapter(directory)
    config = directory / "config.json"
    if not config.exists():
        raise CheckpointError(f"{config} is missing: {directory} is not a Hugging Face checkpoint")
    raw = object_from_json(config)
    architectures = raw.get("architectures") or [raw.get("model_type", "none")]
    family = FAMILIES.get(architectures[0])
    if family is None:
        raise CheckpointError(
            f"{directory} holds a {architectures[0]};"
            f" supported architectures: {', '.join(FAMILIES)}"
        )
    return Checkpoint(
        directory=directory,
        family=family,
        config=_config(family, directory),
        tensors=tensors_from_directory(directory),
        synthetic=MARK in raw,
    )


def _config(family: Family, directory: Path) -> Any:
    try:
        return family.config(directory)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{directory / 'config.json'} is not usable: {error}") from error


MARK = "synthetic"
"""The key of `config.json` under which a synthetic checkpoint has its model's name and its seed."""
