"""A checkpoint on disk: its config, its tensors, its processor. No weight is read here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from iblip.export.checkpoint.demo import FOLDER, NAME
from iblip.export.checkpoint.directory import (
    Pieces,
    object_from_json,
    refuse_adapter,
    refuse_irregular_files,
    refuse_missing_tokenizers,
    tensors_from_directory,
)
from iblip.export.checkpoint.sentencepiece_files import check_sentencepiece
from iblip.export.checkpoint.source import ModelSource
from iblip.export.checkpoint.text_rules import TextRules
from iblip.export.dequantisation.methods import KEY
from iblip.export.errors import CheckpointError
from iblip.export.families import FAMILIES
from iblip.export.families.family import Family, Projector
from iblip.export.families.parts import Parts
from iblip.export.messages import shown
from iblip.export.system.files import sha256
from iblip.export.weights.weight import Weight

DEMO = FOLDER / NAME
"""The checkpoint that a checkout builds if no `--model` is given; see `demo_checkpoint`."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A Hugging Face checkpoint directory.

    Attributes:
        directory: absolute path.
        family: a value of `FAMILIES`.
        config: the parsed config (`InstructBlipConfig`, `Blip2Config`, `MiniGPT4Config`).
        tensors: by name.
        source: opens the same checkpoint again; `None` if it was not opened by one.
        synthetic: whether its weights are random (`export.synthesis`).
        rules: what an original, whose files these are, does with text otherwise.
    """

    directory: Path
    family: Family
    config: Any
    tensors: Mapping[str, Weight]
    source: ModelSource | None = None
    synthetic: bool = False
    rules: TextRules = field(default_factory=TextRules)

    @property
    def name(self) -> str:
        """Name of the source, or else of the directory."""
        return self.source.name if self.source else self.directory.name

    @property
    def config_file(self) -> Path:
        """The file that `config` was read from, for messages."""
        return self.directory / "config.json"

    @property
    def projector(self) -> Projector:
        """What makes visual prompts: the family's Q-Former, or a merge of patches without one."""
        return "patch_merge" if self.config.qformer_config is None else self.family.projector

    @property
    def prompt_template(self) -> str:
        """Text around a user's `{prompt}`, with the place of the `{image}`."""
        template: str = getattr(self.config, "prompt_template", self.family.prompt_template)
        return template

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end any answer."""
        stop: tuple[str, ...] = getattr(self.config, "stop", self.family.stop)
        return stop

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the tensors, sorted by name."""
        sources = (source for tensor in self.tensors.values() for source in tensor.sources)
        return tuple(sorted({source.file for source in sources}))

    @property
    def beside(self) -> tuple[Path, ...]:
        """Files outside of its directory that it follows from, besides `files`."""
        return ()

    @cached_property
    def processor(self) -> Any:
        """transformers' own processor of this checkpoint, or its parts if there is none.

        It resizes images to what the model takes, whatever size its own file names.

        Raises:
            CheckpointError: it cannot be loaded, or reserves another number of positions for an
                image than the model has query tokens.
        """
        import transformers

        name = self.family.processor
        kind: Any = Parts if name is None else getattr(transformers, name)
        check_sentencepiece(self.directory)
        try:
            processor = kind.from_pretrained(self.directory, local_files_only=True)
        except Exception as error:
            message = f"the processor in {self.directory} cannot be loaded: {error}"
            raise CheckpointError(message) from error
        expected = self.config.num_query_tokens
        actual = getattr(processor, "num_query_tokens", None)
        if name is not None and actual != expected:
            raise CheckpointError(
                f"the processor in {self.directory} has num_query_tokens {actual}, and the model"
                f" {expected}. Set it to {expected} in processor_config.json (older versions of"
                " transformers did not write it)."
            )
        resize(processor.image_processor, self.config.vision_config.image_size)
        return processor

    def digests(self, known: Mapping[Path, str] | None = None) -> dict[str, str]:
        """Returns the sha256 of config and weights files, in hexadecimal, by file name.

        Args:
            known: digests that have been computed already, by path.
        """
        paths = (self.config_file, *self.files)
        return {path.name: (known or {}).get(path) or sha256(path) for path in paths}


def resize(image_processor: Any, side: int) -> None:
    """Sets `image_processor` to resize to squares of `side` pixels.

    One that crops is not changed: `export.checkpoint.facts.preprocessing` refuses it.
    """
    if {"height", "width"} <= image_processor.to_dict()["size"].keys():
        image_processor.size = {"height": side, "width": side}


OTHER_NAMES: Mapping[str, Mapping[str, str]] = {
    "gpt_neox": {"language_model.embed_out.weight": "language_model.lm_head.weight"},
}
"""The language model's `model_type` to names that files have for tensors, and transformers'."""


def checkpoint_from_directory(directory: Path, pieces: Pieces | None = None) -> Checkpoint:
    """Opens the Hugging Face checkpoint in `directory`.

    Args:
        directory: holds its files.
        pieces: tensors of files that are not there yet; they count as files of the directory.

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
    refuse_irregular_files(directory)
    refuse_adapter(directory)
    config = directory / "config.json"
    if not config.exists():
        raise CheckpointError(f"{config} is missing: {directory} is not a Hugging Face checkpoint")
    raw = object_from_json(config)
    architecture = raw.get("architectures") or raw.get("model_type", "none")
    if isinstance(architecture, list):
        architecture = architecture[0]
    family = FAMILIES.get(architecture) if isinstance(architecture, str) else None
    if family is None:
        name = architecture if isinstance(architecture, str) else shown(architecture)
        raise CheckpointError(
            f"{directory} holds a {name}; supported architectures: {', '.join(FAMILIES)}"
        )
    parsed = _config(family, directory)
    names = OTHER_NAMES.get(parsed.text_config.model_type, {})
    tensors = tensors_from_directory(directory, pieces)
    reads = family.projector == "instruction_qformer"
    refuse_missing_tokenizers(directory, ["tokenizer", *(["qformer_tokenizer"] if reads else [])])
    return Checkpoint(
        directory=directory,
        family=family,
        config=parsed,
        tensors={names.get(name, name): tensor for name, tensor in tensors.items()},
        synthetic=MARK in raw,
    )


def _config(family: Family, directory: Path) -> Any:
    try:
        return without_quantisation(family.config(directory))
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{directory / 'config.json'} is not usable: {error}") from error


def without_quantisation(config: Any) -> Any:
    """Returns a config that does not say that weights are quantised: graphs read them as floats."""
    for part in (config, config.text_config):
        if hasattr(part, KEY):
            delattr(part, KEY)
    return config


MARK = "synthetic"
"""Key in a synthetic checkpoint's `config.json` for its model's name and its seed."""
