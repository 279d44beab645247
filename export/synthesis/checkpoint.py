"""Writes a synthetic checkpoint directory for a row of the table of models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iblip.export.artifact.directory import Kind, new_build
from iblip.export.checkpoint.cache_shape import DEFAULT_T5_LENGTH
from iblip.export.checkpoint.checkpoint import MARK
from iblip.export.checkpoint.demo import demo_checkpoint
from iblip.export.checkpoint.directory import INDEX, object_from_json
from iblip.export.errors import BuildDirectoryError, IblipError, OptionError
from iblip.export.messages import size_text
from iblip.export.models.model import Model
from iblip.export.progress import Progress, Silent
from iblip.export.synthesis.geometry import config_json, image_token_id, shapes
from iblip.export.synthesis.shards import SHARD, Weights, write_shards
from iblip.export.synthesis.tokenizers import fill_vocabulary

DTYPES = ("float32", "float16", "bfloat16")

SPARE = 64 << 20
"""Bytes that the files beside the weights, and the file system, may take."""

CARD = """\
# {name}, synthetic

Random weights in the geometry of {name}, to plan capacity with: answers mean nothing. Written by
`iblip synthesize {name}` (dtype {dtype}, seed {seed}).
"""


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """A synthetic checkpoint that is to be written.

    Attributes:
        model: whose geometry it has.
        dtype: of the weights, one of `DTYPES`.
        seed: of the weights; the same seed gives the same bytes.
        shard: largest number of bytes of tensors in one file.

    Raises:
        OptionError: the dtype is unknown, or the seed is below 0.
    """

    model: Model
    dtype: str = "float32"
    seed: int = 0
    shard: int = SHARD

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise OptionError(f"--dtype is {self.dtype!r}; expected one of {', '.join(DTYPES)}")
        if self.seed < 0:
            raise OptionError(f"--seed is {self.seed}; expected 0 or more")


def _is_synthetic(directory: Path) -> bool:
    config = directory / "config.json"
    try:
        return config.exists() and MARK in object_from_json(config)
    except IblipError:
        return False


SYNTHETIC = Kind(
    name="a synthetic checkpoint",
    mark=f"config.json with {MARK!r}",
    argument="OUT",
    holds=_is_synthetic,
)


def synthesize(options: Synthesis, destination: Path, progress: Progress | None = None) -> int:
    """Writes the checkpoint to `destination` atomically, and returns the bytes of its weights.

    Memory does not grow with the model: weights are computed in pieces.

    Args:
        options: of the checkpoint.
        destination: is created; an older synthetic checkpoint there is replaced.
        progress: reports the bytes written.

    Raises:
        BuildDirectoryError: `destination` holds something else, cannot be written, or its disk has
            less free than the checkpoint takes.
    """
    progress, model = progress or Silent(), options.model
    weights = Weights(shapes=shapes(model), dtype=options.dtype, seed=options.seed, text=model.text)
    _check_space(weights.total, destination.absolute())
    with new_build(destination, SYNTHETIC) as work:
        title = f"write {model.name} in {options.dtype}"
        with progress.stage(title, weights.total, "B") as advance:
            places, files = write_shards(weights, work, advance, shard=options.shard)
        if len(files) > 1:
            index = {"metadata": {"total_size": weights.total}, "weight_map": places}
            _write(work / f"model.safetensors{INDEX}", index)
        _write_text(model, work)
        _write(work / "config.json", config_json(model, dtype=options.dtype, seed=options.seed))
        card = CARD.format(name=model.name, dtype=options.dtype, seed=options.seed)
        (work / "README.md").write_text(card, encoding="utf-8")
    return weights.total


def _check_space(size: int, destination: Path) -> None:
    """Raises BuildDirectoryError if the disk has too little space."""
    place = next(parent for parent in destination.parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < size + SPARE:
        raise BuildDirectoryError(
            f"{destination}: the checkpoint takes {size_text(size + SPARE)}, and"
            f" {size_text(free)} are free there. Free some space, give OUT a directory on"
            " another disk, or --dtype float16."
        )


def _write_text(model: Model, directory: Path) -> None:
    """Writes tokenizers, image processor and generation config: the demo's, at other sizes."""
    demo, text = demo_checkpoint(model.demo), model.text
    side = {"height": model.image_size, "width": model.image_size}
    length = text.get("max_position_embeddings", DEFAULT_T5_LENGTH)
    _tokenizer(demo, directory, text["vocab_size"], _places(model), length)
    if model.family.projector == "instruction_qformer" and model.qformer is not None:
        (directory / "qformer_tokenizer").mkdir()
        part = "qformer_tokenizer"
        read = object_from_json(demo / part / "tokenizer_config.json")["model_max_length"]
        _tokenizer(demo / part, directory / part, model.qformer["vocab_size"], {}, read)
    pixels = object_from_json(demo / "preprocessor_config.json")
    _write(directory / "preprocessor_config.json", {**pixels, "size": side})
    if (demo / "processor_config.json").exists():
        processor = object_from_json(demo / "processor_config.json")
        inner = {**processor["image_processor"], "size": side}
        changed = {"image_processor": inner, "num_query_tokens": model.num_query_tokens}
        _write(directory / "processor_config.json", {**processor, **changed})
    generation = object_from_json(demo / "generation_config.json")
    own = {name: text[name] for name in generation if name in text}
    _write(directory / "generation_config.json", {**generation, **own})


def _places(model: Model) -> dict[str, int]:
    """Returns the ids of tokens that the model's config refers to."""
    places = {}
    if (image := image_token_id(model)) is not None:
        places["<image>"] = image
    if model.text["model_type"] == "opt":
        places["Ċ"] = int(model.text["eos_token_id"])  # a line break, as bytes are spelt there
    return places


def _tokenizer(
    demo: Path, directory: Path, size: int, places: Mapping[str, int], length: int
) -> None:
    tokenizer = fill_vocabulary(object_from_json(demo / "tokenizer.json"), size, places)
    _write(directory / "tokenizer.json", tokenizer)
    config = object_from_json(demo / "tokenizer_config.json")
    _write(directory / "tokenizer_config.json", {**config, "model_max_length": length})


def _write(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
