"""Writes a checkpoint's language model as a Hugging Face directory of its own.

For engines that read such directories themselves. Weights are copied one at a time, and cast if
another dtype is asked for; memory does not grow with the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.checkpoint.safetensors import safetensors_header
from iblip.export.errors import CheckpointError
from iblip.export.progress import Progress
from iblip.export.weights.recipe import Recipe

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class CausalModel:
    """One row of `CAUSAL_MODELS`.

    Attributes:
        architecture: transformers' class, as `config.json` names it.
        prefix: of the names of this model's weights in a whole checkpoint.
    """

    architecture: str
    prefix: str = "language_model."


CAUSAL_MODELS: Mapping[str, CausalModel] = {
    "llama": CausalModel(architecture="LlamaForCausalLM"),
    "opt": CausalModel(architecture="OPTForCausalLM"),
}
"""The model on its own, by the text config's `model_type`."""


def write_language_model(
    checkpoint: Checkpoint, directory: Path, dtype: str, progress: Progress
) -> tuple[Path, ...]:
    """Writes `config.json` and `model.safetensors` into `directory`, and returns their paths.

    Args:
        checkpoint: whose language model is a row of `CAUSAL_MODELS`.
        directory: is created.
        dtype: of the weights, a key of `export.artifact.contract.DTYPES`.
        progress: reports the bytes written.

    Raises:
        CheckpointError: the checkpoint has no weights of a language model.
        ExportError: a weight leaves the range of `dtype`.
        OSError: the directory cannot be written.
    """
    config = checkpoint.config.text_config
    row = CAUSAL_MODELS[config.model_type]
    recipes = {
        name.removeprefix(row.prefix): Recipe(source=tensor, dtype=dtype)
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(row.prefix)
    }
    if not recipes:
        raise CheckpointError(
            f"{checkpoint.directory} has no weights that begin with {row.prefix!r}, "
            f"where those of a {row.architecture} should be"
        )
    directory.mkdir(parents=True)
    written = {
        **config.to_dict(),
        "architectures": [row.architecture],
        "dtype": dtype,
        # As in the graphs: embeddings that the checkpoint has twice are two, whatever it says.
        "tie_word_embeddings": "lm_head.weight" not in recipes,
    }
    (directory / CONFIG).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    _write_weights(recipes, directory / WEIGHTS, progress)
    return directory / CONFIG, directory / WEIGHTS


def _write_weights(recipes: Mapping[str, Recipe], path: Path, progress: Progress) -> None:
    header = safetensors_header({n: (r.source.shape, r.dtype) for n, r in recipes.items()})
    total = sum(recipe.nbytes for recipe in recipes.values())
    with (
        progress.stage("write the language model for vLLM", total, "B") as advance,
        path.open("wb") as stream,
    ):
        stream.write(header)
        for recipe in recipes.values():
            values = np.ascontiguousarray(recipe.evaluate())
            stream.write(values.reshape(-1).view(np.uint8).data)
            advance(recipe.nbytes)
