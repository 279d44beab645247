"""The parts of an original: which are needed, and what each is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from iblip.export.errors import CheckpointError, OptionError
from iblip.export.models.model import Model
from iblip.export.models.table import MODELS

WHAT: Mapping[str, str] = {
    "checkpoint": "LAVIS's own file: Q-Former, projection, and what else was trained",
    "base": "the file that the checkpoint was trained from, with what was frozen then",
    "vit": "EVA's ViT-g, of which LAVIS takes 39 blocks",
    "qformer": "LAVIS's file with the Q-Former of BLIP-2",
    "projection": "MiniGPT-4's own file: the projection to the language model",
    "language_model": "the language model's directory in Hugging Face form, with its tokenizer",
    "qformer_tokenizer": "the directory of the Q-Former's tokenizer",
    "config": "a config.json in transformers' form, for another size than the original's",
}
"""Descriptions of the parts, of any model."""

OPTIONAL = frozenset({"base", "vit", "qformer_tokenizer", "config"})
"""Parts that may be left out if the others, or the hub's cache, have their content."""

EXTRA = ("base", "config")
"""Parts that any model may have besides those in its row."""


def model_of(scheme: str, name: str) -> Model:
    """Returns the model that LAVIS or MiniGPT-4 calls `name`.

    Args:
        scheme: `lavis` or `minigpt4`, a field of `Model`.
        name: what follows it in `--model`.

    Raises:
        OptionError: listing the names that are known.
    """
    known = {row: model for model in MODELS.values() if (row := getattr(model, scheme))}
    if name not in known:
        listed = "\n  ".join(f"{scheme}:{row}" for row in known)
        raise OptionError(f"--model {scheme}:{name} is not known; known are\n  {listed}")
    return known[name]


def check_parts(model: Model, parts: Mapping[str, Path]) -> None:
    """Checks that the parts are those of the model.

    Raises:
        OptionError: one is missing or unknown; the message lists and describes all parts.
        CheckpointError: a path does not exist.
    """
    known = [*model.files, *(["vit"] if "vit" not in model.files else []), *EXTRA]
    needed = [part for part in model.files if part not in OPTIONAL]
    missing = [part for part in needed if part not in parts]
    unknown = [part for part in parts if part not in known]
    if missing or unknown:
        raise wrong_parts(model, missing, unknown)
    for part, path in parts.items():
        if not path.exists():
            raise CheckpointError(f"--part {part}={path}: there is no such file or directory")


def wrong_parts(model: Model, missing: Sequence[str], unknown: Sequence[str] = ()) -> OptionError:
    """Returns the error for parts that are missing or unknown, which lists the model's parts."""
    faults = [f"--part {part}=… is missing" for part in missing]
    faults += [f"there is no part {part!r}" for part in unknown]
    return OptionError(f"{model.name}: {'; '.join(faults)}. It is made of\n{describe_parts(model)}")


def describe_parts(model: Model) -> str:
    """Returns a line for each part of `model`: what it is, and what the original calls it."""
    rows = {**model.files, **dict.fromkeys(EXTRA, "")}
    return "\n".join(f"  {part}: {_line(part, file)}" for part, file in rows.items())


def _line(part: str, file: str) -> str:
    name = f" ({file})" if file else ""
    may = " May be left out." if part in OPTIONAL - {"vit"} else ""
    return f"{WHAT[part]}{name}.{may}"
