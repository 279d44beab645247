"""The tensors of a Hugging Face directory, in whichever files it keeps them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from export.errors import CheckpointError
from export.torch_files import tensors_from_torch_file
from export.weights import Weight, tensors_from_safetensors

FORMS: Mapping[str, Callable[[Path], Mapping[str, Weight]]] = {
    "model.safetensors": tensors_from_safetensors,
    "pytorch_model.bin": tensors_from_torch_file,
}
"""The file of a checkpoint in one piece, to what reads it; with `.index.json` behind it, what lists
the pieces of one in several. The first that is there counts, as in transformers."""


def tensors_from_directory(directory: Path) -> dict[str, Weight]:
    """Every tensor that lies in `directory`, by name. No weight is read.

    Raises:
        CheckpointError: there is no weights file, or one is missing, cut off or damaged.
    """
    for name, read in FORMS.items():
        index = directory / f"{name}.index.json"
        if index.exists():
            return {k: v for piece in _pieces(index) for k, v in read(directory / piece).items()}
        if (directory / name).exists():
            return dict(read(directory / name))
    wanted = " nor ".join(FORMS)
    raise CheckpointError(
        f"{directory} has neither {wanted} (nor the index of one in several pieces): it holds no"
        " weights. Was it downloaded whole?"
    )


def _pieces(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of weights ({error!r})") from error
