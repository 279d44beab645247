"""Finds where the tensors of a `.pth` or `.bin` file lie. No weight is read.

Such a file is a zip archive whose members are stored as they are: a pickle that describes the
tensors, and their bytes (torch's notes on serialization, "torch.save() format"). Loaded under a
`FakeTensorMode`, torch gives tensors without memory, whose storages know their place in the file.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iblip.export.errors import CheckpointError
from iblip.export.messages import LONGEST
from iblip.export.system.files import refuse_irregular
from iblip.export.weights.weight import SourceTensor, Strided, Weight

if TYPE_CHECKING:
    import torch

SECTIONS = ("model", "state_dict", "module", "model_state_dict")
"""Keys under which a training run keeps the weights beside its own state."""

SUFFIXES = frozenset({".bin", ".pth", ".pt"})

LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of a file that torch before 1.6 wrote: a pickled number, `torch.serialization`'s
`MAGIC_NUMBER`."""


def tensors_from_torch_file(file: Path) -> dict[str, Weight]:
    """Returns the tensors of a file by name, or those of one of `SECTIONS` if the file has one.

    Entries that are not tensors (an epoch, a config) are ignored. Nothing is unpickled except
    tensors and plain containers (`weights_only`).

    Raises:
        CheckpointError: the file is missing, cut off, no torch file or one of an old form, or holds
            objects that only running their code could load.
    """
    _check_form(file)
    loaded = _load(file)
    section = next((loaded[name] for name in SECTIONS if _is_section(loaded.get(name))), loaded)
    try:
        return {name: _weight(name, file, tensor) for name, tensor in _tensors(section)}
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        # A tensor that has no memory of its own in the file: sparse, of another device, or a lie.
        raise CheckpointError(_damaged(file, error)) from error


def saved_config(file: Path) -> Mapping[str, Any]:
    """Returns the config that a training run has saved with its weights; empty if there is none.

    Raises:
        CheckpointError: as `tensors_from_torch_file`.
    """
    _check_form(file)
    config = _load(file).get("config")
    return config if isinstance(config, Mapping) else {}


def _check_form(file: Path) -> None:
    try:
        refuse_irregular(file)
        with file.open("rb") as stream:
            head = stream.read(len(LEGACY))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    if head == LEGACY:
        raise CheckpointError(f"{file} has the form of torch before 1.6. {_convert(file)}")
    try:
        if not zipfile.is_zipfile(file):
            fault = "is cut off" if head.startswith(b"PK") else "is not a file of torch.save"
            raise CheckpointError(f"{file} {fault}. Download it again.")
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except CheckpointError:
        raise
    except Exception as error:  # the library lets out whatever a damaged directory trips
        raise CheckpointError(_damaged(file, error)) from error
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise CheckpointError(f"{file} is a compressed archive. {_convert(file)}")


def _damaged(file: Path, error: Exception) -> str:
    reason = str(error).partition("\n")[0][:LONGEST] or type(error).__name__
    return f"{file} is damaged ({reason}). Download it again."


def _convert(file: Path) -> str:
    new = file.with_stem(f"{file.stem}-new").name
    return (
        "Convert it once: python -c \"import torch; torch.save(torch.load('"
        f"{file.name}', map_location='cpu', weights_only=True), '{new}')\""
    )


def _load(file: Path) -> Mapping[str, Any]:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode():
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds more than tensors, and loading that would run code from the file"
            f" ({str(error).splitlines()[0]}). Save its tensors alone (a state_dict), where you"
            " trust it."
        ) from error
    except Exception as error:  # torch's own reader raises whatever a damaged file trips
        raise CheckpointError(_damaged(file, error)) from error
    if not isinstance(loaded, Mapping):
        message = f"{file} holds a {type(loaded).__name__}; expected tensors by name"
        raise CheckpointError(message)
    return loaded


def _is_section(value: object) -> bool:
    return isinstance(value, Mapping) and any(True for _ in _tensors(value))


def _tensors(section: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    for name, value in section.items():
        if isinstance(value, torch.Tensor):
            yield str(name), value


def _weight(name: str, file: Path, tensor: torch.Tensor) -> Weight:
    storage: Any = tensor.untyped_storage()
    dtype = str(tensor.dtype).removeprefix("torch.")
    size, shape = tensor.element_size(), tuple(tensor.shape)
    start: int = storage._checkpoint_offset  # of the storage; the tensor may begin further on
    first = int(tensor.storage_offset())
    last = first + sum((n - 1) * step for n, step in zip(shape, tensor.stride(), strict=True))
    end = start + storage.nbytes()
    if math.prod(shape) and not (0 <= first <= last < storage.nbytes() // size):
        raise ValueError(f"{name} reaches beyond its storage")
    if not 0 <= start <= end <= file.stat().st_size:
        raise ValueError(f"{name} reaches beyond the file")
    if tensor.is_contiguous():
        return SourceTensor(
            name=name,
            file=file,
            offset=start + first * size,
            length=math.prod(shape) * size,
            dtype=dtype,
            shape=shape,
        )
    whole = SourceTensor(
        name=name,
        file=file,
        offset=start,
        length=storage.nbytes(),
        dtype=dtype,
        shape=(storage.nbytes() // size,),
    )
    strides = tuple(tensor.stride())
    return Strided(source=whole, start=first, strides=strides, shape=shape)
