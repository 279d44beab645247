"""Finds the tensor of the checkpoint that each weight of a graph is made of."""

from __future__ import annotations

from collections.abc import Mapping

from iblip.export.artifact.contract import DTYPES
from iblip.export.errors import CheckpointError
from iblip.export.messages import listed, nearest
from iblip.export.weights.recipe import Recipe
from iblip.export.weights.weight import Weight


def bind(
    wanted: Mapping[str, tuple[tuple[int, ...], str]],
    tensors: Mapping[str, Weight],
    tied: Mapping[str, str],
) -> dict[str, Recipe]:
    """Finds the source of every weight that a graph wants.

    Args:
        wanted: initializer name to its shape and dtype.
        tensors: the checkpoint's, by name.
        tied: where a weight is to be found that the checkpoint does not have under its own name.

    Raises:
        CheckpointError: listing every tensor that is missing, with the nearest that is there, and
            every tensor of another shape.
    """
    if faults := misfits(wanted, tensors, tied):
        raise CheckpointError(f"the checkpoint does not fit its own config:\n  {listed(faults)}")
    sources = {name: tensors.get(name) or tensors[tied[name]] for name in wanted}
    return {name: Recipe(source=sources[name], dtype=dtype) for name, (_, dtype) in wanted.items()}


def misfits(
    wanted: Mapping[str, tuple[tuple[int, ...], str]],
    tensors: Mapping[str, Weight],
    tied: Mapping[str, str],
) -> list[str]:
    """What `bind` would not find, a line each: missing, of another shape, or of no usable dtype."""
    faults, spare = [], [name for name in tensors if name not in wanted] or list(tensors)
    for name, (shape, _) in wanted.items():
        source = tensors.get(name) or tensors.get(tied.get(name, ""))
        if source is None:
            faults.append(f"{name} is missing{nearest(name, spare)}")
        elif source.shape != shape:
            faults.append(f"{name} has shape {list(source.shape)}, wanted {list(shape)}")
        elif source.dtype not in DTYPES:
            faults.append(f"{name} has dtype {source.dtype}; supported: {', '.join(DTYPES)}")
    return faults
