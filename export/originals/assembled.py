"""Assembles a checkpoint from several files, as a directory in Hugging Face form would give it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iblip.export.checkpoint.checkpoint import Checkpoint, resize
from iblip.export.checkpoint.image_size import POSITIONS, InterpolatedPositions
from iblip.export.checkpoint.text_rules import TextRules
from iblip.export.components.graphs_of_checkpoint import components_from_checkpoint
from iblip.export.errors import CheckpointError, OptionError
from iblip.export.models.model import Model
from iblip.export.models.table import MODELS
from iblip.export.originals.joining import (
    File,
    expected_tensors,
    join_biases,
    origin_of,
)
from iblip.export.originals.lora import (
    Low,
    alpha_of_training,
    merge_lora,
    split_lora,
    without_wrappers,
)
from iblip.export.originals.names import to_transformers
from iblip.export.originals.starting import start_token_of
from iblip.export.originals.tokenizers import processor_of
from iblip.export.originals.vocabulary import extend_vocabulary, set_vocabulary
from iblip.export.precision import PrecisionPolicy
from iblip.export.system.files import sha256
from iblip.export.weights.fit import check_fit
from iblip.export.weights.weight import Weight

PROJECTION = "language_projection.weight"

BASE_REMEDY = (
    "Was it trained from another file, with less unfrozen than that has? --part base=FILE adds it."
)
CONFIG_REMEDY = "A model of another size? --part config=FILE gives its own in transformers' form."


@dataclass(frozen=True, kw_only=True)
class Assembled(Checkpoint):
    """A checkpoint whose parts lie apart. Its `directory` is the language model's.

    Attributes:
        model: the row of the table that it is.
        parts: absolute paths, by the names of `export.originals.parts.WHAT`.
        prepared: the processor.
    """

    model: Model
    parts: Mapping[str, Path]
    prepared: Any

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.model.name

    @property
    def config_file(self) -> Path:
        """The part `config`, or else the language model's config."""
        return self.parts.get("config", super().config_file)

    @property
    def processor(self) -> Any:
        """The same as `Checkpoint.processor`, with the original's settings."""
        resize(self.prepared.image_processor, self.config.vision_config.image_size)
        return self.prepared

    def digests(self, known: Mapping[Path, str] | None = None) -> dict[str, str]:
        """Returns the sha256 of every file of a part, in hexadecimal, by `part/file name`.

        Args:
            known: digests that have been computed already, by path.
        """
        digests = {}
        for part, path in self.parts.items():
            inside = [file for file in self.files if file.parent == path]
            configs = [path / "config.json"] if inside else []
            for file in [path] if path.is_file() else [*configs, *inside]:
                digests[f"{part}/{file.name}"] = (known or {}).get(file) or sha256(file)
        return digests


def assemble(
    scheme: str,
    model: Model,
    parts: Mapping[str, Path],
    files: Sequence[File],
    config: Any,
    alphas: Mapping[str, float],
) -> Assembled:
    """Merges the tensors of `files` into a whole checkpoint; later files take precedence.

    Args:
        scheme: `lavis` or `minigpt4`.
        model: the row of the table.
        parts: absolute paths.
        files: the parts with weights.
        config: of the whole; its vocabulary size is set to the tensors', unless it is a part.
        alphas: of LoRA in the files, as in `ModelSource.lora_alpha`.

    Raises:
        CheckpointError: a part is of another size, has LoRA that cannot be merged, or lacks a
            tensor; tokenizer or config cannot be used.
        OptionError: there is an alpha, and no LoRA.
    """

    tensors, origins = _merge(files, alphas, model.lora_alpha)
    _fit_positions(tensors, config.vision_config)
    _check_projection(scheme, tensors.get(PROJECTION), config)
    prepared, reproduced = processor_of(
        model,
        parts,
        image_size=config.vision_config.image_size,
        queries=config.num_query_tokens,
    )
    if "config" not in parts:
        tensors = extend_vocabulary(tensors, len(prepared.tokenizer))
        set_vocabulary(config, tensors, prepared)
    checkpoint = Assembled(
        directory=parts["language_model"],
        family=model.family,
        config=config,
        tensors=tensors,
        model=model,
        parts=parts,
        prepared=prepared,
        rules=TextRules(
            tokenizer=reproduced,
            bytes_apart=config.text_config.model_type == "llama" and bool(reproduced),
            start_token_id=start_token_of(config.text_config, parts["language_model"]),
        ),
    )
    shapes, tied = expected_tensors(_components(checkpoint))
    check_fit(
        shapes,
        tensors,
        tied,
        title=lambda name: origins.get(name) or origin_of(name, files),
        summary="the files do not make this model",
        remedy=CONFIG_REMEDY if "base" in parts else f"{BASE_REMEDY}\n{CONFIG_REMEDY}",
    )
    return checkpoint


def _merge(
    files: Sequence[File], alphas: Mapping[str, float], released: float | None
) -> tuple[dict[str, Weight], dict[str, str]]:
    """Returns the tensors and the origin of each, by transformers' names.

    LoRA's matrices are parameters as any other: those of a later file take the place of an earlier
    one's, and what is left is merged into the weights that are left. Its alpha is the given one
    (`alphas`), or else the file's own, or else that of the `released` model.
    """
    tensors: dict[str, Weight] = {}
    origins: dict[str, str] = {}
    lows: dict[str, Low] = {}
    for file in files:
        rest, low = split_lora(file.part, without_wrappers(file.tensors))
        by_name = {to_transformers(name, file.names) or name: one for name, one in low.items()}
        for name, own, tensor in replace(file, tensors=rest).canonical():
            if name in lows and name not in by_name:
                raise CheckpointError(
                    f"--part {file.part} has {own} whole, and --part {lows[name].part} has LoRA for"
                    " it: whether that is in it already, the files do not say. Save one file that"
                    " has both, or has the weight alone."
                )
            tensors[name], origins[name] = tensor, f"{file.part}: {own}"
        alpha = alpha_of_training(file.path) if low and file.path else None
        alpha = released if alpha is None else alpha
        lows |= {name: replace(one, alpha=alpha) for name, one in by_name.items()}
    merge_lora(lows, tensors, alphas)
    if alphas and not lows:
        raise OptionError("--lora-alpha is given, and no part has LoRA in it. Leave it out.")
    tensors = join_biases(tensors)
    return tensors, {n: origins.get(n) or origin_of(n, files) for n in tensors}


def _fit_positions(tensors: dict[str, Weight], vision: Any) -> None:
    """Interpolates position embeddings for images of another size, as LAVIS does at load time.

    EVA's file is for 224 pixels; the captioners, which take 364, have their own.
    """
    table, side = tensors.get(POSITIONS), vision.image_size // vision.patch_size
    if table is None or len(table.shape) != 3:
        return
    own = math.isqrt(table.shape[1] - 1)
    if own != side and own**2 == table.shape[1] - 1:
        tensors[POSITIONS] = InterpolatedPositions(source=table, side=side)


def _components(checkpoint: Checkpoint) -> list[Any]:
    """Returns every component but `batched_decoder`, which has the same weights as `decoder`."""
    components = components_from_checkpoint(checkpoint, PrecisionPolicy())
    return [component for component in components if component.graph != "batched_decoder"]


def _check_projection(scheme: str, weight: Weight | None, config: Any) -> None:
    """Raises CheckpointError if the projection belongs to another model than the other parts."""
    if weight is None:
        return  # reported later with all that is missing
    outputs, inputs = weight.shape
    vision, qformer = config.vision_config, config.qformer_config
    features = (
        vision.hidden_size * config.merged_patches if qformer is None else qformer.hidden_size
    )
    if (outputs, inputs) == (config.text_config.hidden_size, features):
        return
    raise CheckpointError(
        f"the projection ({weight.name}) takes {inputs} features and gives {outputs}; the other"
        f" parts have {features}, and a language model that is {config.text_config.hidden_size}"
        f" wide.{_likely_model(scheme, outputs, inputs)}"
    )


def _likely_model(scheme: str, outputs: int, inputs: int) -> str:
    """Says which released models have a projection of that shape."""
    fitting = [
        f"{scheme}:{name}"
        for model in MODELS.values()
        if (name := getattr(model, scheme)) and model.projection == (outputs, inputs)
    ]
    if not fitting:
        return " It is of none of the released models."
    return f" It is that of {' or '.join(fitting)}: give all the parts of one model."
