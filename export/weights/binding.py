"""Finds the tensor of the checkpoint that each weight of a graph is made from."""

from __future__ import annotations

from collections.abc import Mapping

from iblip.export.weights.fit import check_fit
from iblip.export.weights.recipe import Recipe
from iblip.export.weights.weight import Weight


def bind(
    weights: Mapping[str, tuple[tuple[int, ...], str]],
    tensors: Mapping[str, Weight],
    tied: Mapping[str, str],
) -> dict[str, Recipe]:
    """Finds the source of every weight that a graph needs.

    Args:
        weights: shape and dtype of every weight, by initializer name, as `Trace.weights`.
        tensors: the checkpoint's, by name.
        tied: the other name of a weight that the checkpoint may not have under its own.

    Raises:
        CheckpointError: as `export.weights.fit.check_fit`, but tensors that are not used are
            allowed.
    """
    check_fit({name: shape for name, (shape, _) in weights.items()}, tensors, tied, known=tensors)
    sources = {name: tensors.get(name) or tensors[tied[name]] for name in weights}
    return {name: Recipe(source=sources[name], dtype=dtype) for name, (_, dtype) in weights.items()}
