"""Finds the tensors of a Hugging Face directory, in whichever files it keeps them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from iblip.export.checkpoint.safetensors import tensors_from_safetensors
from iblip.export.checkpoint.torch_files import tensors_from_torch_file
from iblip.export.dequantisation.methods import OWN_FILES, dequantised, settings_of
from iblip.export.errors import CheckpointError
from iblip.export.messages import shown
from iblip.export.system.files import is_inside, refuse_irregular
from iblip.export.system.json_text import parse_json
from iblip.export.weights.weight import Weight

Read = Callable[[Path], Mapping[str, Weight]]

FORMS: Mapping[str, Read] = {
    "model.safetensors": tensors_from_safetensors,
    "pytorch_model.bin": tensors_from_torch_file,
}
"""Readers, by the name of the file of a checkpoint in one piece; with `INDEX` behind it, of one in
shards. The first that exists counts, as in transformers."""

ADAPTER_FORMS: Mapping[str, Read] = {
    "adapter_model.safetensors": tensors_from_safetensors,
    "adapter_model.bin": tensors_from_torch_file,
}
"""The same of an adapter."""

INDEX = ".index.json"
"""Suffix of the file that lists the shards of a checkpoint."""

NOT_READ = frozenset({".msgpack", ".h5", ".gguf", ".onnx", ".ot", ".pth", ".pt"})
"""Suffixes of files of weights that are not supported, which an error message names."""

ADAPTER_CONFIG = "adapter_config.json"
"""The file that peft writes beside the weights of an adapter."""


Pieces = Mapping[str, Mapping[str, Weight]]
"""Tensors of files that are not downloaded yet, by the file's name."""


def tensors_from_directory(directory: Path, pieces: Pieces | None = None) -> dict[str, Weight]:
    """Returns every tensor in `directory`, by name. No weight is read.

    In place of the tensors of a weight that another library has quantised stands one that is
    dequantised when it is read (`export.dequantisation`).

    Args:
        directory: of a checkpoint.
        pieces: count as files of the directory.

    Raises:
        CheckpointError: there is no weights file, or one is missing, cut off or damaged; the
            weights are those of an adapter, or are quantised in a way that is not supported.
    """
    refuse_irregular_files(directory)
    refuse_adapter(directory)
    tensors = tensors_of_forms(directory, FORMS, pieces)
    adapters = [name for name in tensors if "lora_" in name or ".base_layer." in name]
    if adapters:
        raise _adapter_error(directory, f"{adapters[0]} is one of {len(adapters)} tensors of it")
    config = directory / "config.json"
    files = {name: directory / name for name in OWN_FILES if (directory / name).exists()}
    others = {name: object_from_json(file) for name, file in files.items()}
    settings = settings_of(object_from_json(config) if config.exists() else {}, others)
    try:
        return dequantised(tensors, settings)
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from error


def refuse_irregular_files(directory: Path) -> None:
    """Raises CheckpointError if `directory` holds a pipe or a device, which readers would wait for.

    Of its folders, the tokenizers' are looked into.
    """
    try:
        for path in (*directory.glob("*"), *directory.glob("*/*")):
            refuse_irregular(path)
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read: {error.strerror}") from error


def refuse_adapter(directory: Path) -> None:
    """Raises CheckpointError if `directory` holds an adapter of peft."""
    if (directory / ADAPTER_CONFIG).exists():
        raise _adapter_error(directory, f"there is an {ADAPTER_CONFIG}")


VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
"""Files of which any tokenizer has one."""

TOKENIZERS: Mapping[str, str] = {"tokenizer": ".", "qformer_tokenizer": "qformer_tokenizer"}
"""Folder of each tokenizer in a checkpoint or an adapter, by the processor's name."""


def has_tokenizer(directory: Path) -> bool:
    """Whether `directory` holds the vocabulary of a tokenizer."""
    return any((directory / file).exists() for file in VOCABULARIES)


def refuse_missing_tokenizers(directory: Path, names: Iterable[str]) -> None:
    """Raises CheckpointError if a tokenizer of `names`, keys of `TOKENIZERS`, is not there.

    transformers would take an empty one for the language model's, and that one for the Q-Former's.
    """
    for name in names:
        folder = directory / TOKENIZERS[name]
        if not has_tokenizer(folder):
            raise CheckpointError(
                f"{folder} has no tokenizer: none of {', '.join(VOCABULARIES)} is there. Copy the"
                " tokenizer's files from the model that this one was trained from"
                f" (`processor.save_pretrained({str(directory)!r})` writes them)."
            )


def tensors_of_forms(
    directory: Path, forms: Mapping[str, Read], pieces: Pieces | None = None
) -> dict[str, Weight]:
    """Returns every tensor of the first of `forms` that `directory` has. No weight is read.

    Args:
        directory: of a checkpoint or an adapter.
        forms: readers, by the name of the file in one piece, as `FORMS`.
        pieces: count as files of the directory.

    Raises:
        CheckpointError: there is no weights file, or one is missing, cut off or damaged.
    """
    pieces = pieces or {}
    for name, read in forms.items():
        if name in pieces or (directory / name).exists():
            return dict(pieces[name] if name in pieces else read(directory / name))
        if (directory / f"{name}{INDEX}").exists():
            return _tensors_of_shards(directory / f"{name}{INDEX}", read, pieces)
    others = sorted(path.name for path in directory.iterdir() if path.suffix in NOT_READ)
    hint = f" It has {', '.join(others)}, which cannot be read here." if others else ""
    raise CheckpointError(
        f"{directory} has neither {' nor '.join(forms)} (nor the index of one in several pieces):"
        f" it holds no weights.{hint} Was it downloaded whole?"
    )


def _tensors_of_shards(index: Path, read: Read, known: Pieces) -> dict[str, Weight]:
    """Returns the tensors of every shard. All that `index` names must be there."""
    places = object_from_json(index).get("weight_map")
    if not isinstance(places, dict):
        raise CheckpointError(f"{index} is no index of weights: it has no weight_map")
    outside = [shown(piece) for piece in places.values() if not is_inside(piece)]
    _refuse(index, outside, "not the name of a file beside it")
    pieces = sorted(set(places.values()))
    missing = [
        piece for piece in pieces if piece not in known and not (index.parent / piece).exists()
    ]
    _refuse(index, missing, f"missing, of {len(pieces)} pieces")
    tensors: dict[str, Weight] = {}
    for piece in pieces:
        found = known[piece] if piece in known else read(index.parent / piece)
        _refuse(index, [shown(name) for name in found if name in tensors], "in two pieces")
        tensors |= found
    without = sorted({piece for name, piece in places.items() if name not in tensors})
    _refuse(index, without, "without tensors that it says are there")
    return tensors


def _refuse(index: Path, pieces: Sequence[str], fault: str) -> None:
    if pieces:
        named = ", ".join(pieces[:5]) + (f" and {len(pieces) - 5} more" if pieces[5:] else "")
        raise CheckpointError(f"{index}: {named}: {fault}. Download again.")


def _adapter_error(directory: Path, evidence: str) -> CheckpointError:
    config = directory / ADAPTER_CONFIG
    base = object_from_json(config).get("base_model_name_or_path") if config.exists() else None
    return CheckpointError(
        f"{directory} holds a LoRA adapter{f' of {base}' if base else ''} that is not merged:"
        f" {evidence}. Give --model the model that it was trained on, and --adapter this one; or"
        " merge it once, with peft: load the model with its adapter,"
        " `model.merge_and_unload().save_pretrained(NEW)`, and give --model NEW."
    )


def object_from_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
        CheckpointError: it cannot be read, is not JSON, or holds something else.
    """
    try:
        refuse_irregular(path)
        data = parse_json(path.read_text(encoding="utf-8"), unique=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, expected an object")
    return data
