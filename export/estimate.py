"""Estimates what a build would write, without tracing and without reading a weight."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.components.component import Component
from iblip.export.components.graphs_of_checkpoint import components_from_checkpoint
from iblip.export.components.without_memory import without_memory
from iblip.export.graph.tracing import tied_weights, weight_dtype
from iblip.export.precision import COMPONENTS, DTYPES, PrecisionPolicy
from iblip.export.quantisation.blockwise import BlockwiseMatrix, Integers, Scales, ZeroPoints
from iblip.export.quantisation.channelwise import weights_and_scales
from iblip.export.quantisation.options import Quantisation
from iblip.export.weights.binding import bind
from iblip.export.weights.recipe import Recipe
from iblip.export.weights.widening import narrow

IN_MEMORY: Mapping[str, int] = {"float16": 2, "bfloat16": 2, "scales": 3}
"""How many times larger weights are in ONNX Runtime's memory on a CPU, by dtype: half floats become
float32; scales of blocks are copied beside its packed integers, with a sum for each block."""


@dataclass(frozen=True, kw_only=True)
class ComponentEstimate:
    """The sizes of one component of a build, before it is built.

    Attributes:
        component: `vision_encoder`, `qformer` or `language_model`.
        graphs: names of its graphs.
        precision: a key of `export.precision.DTYPES`.
        quantisation: in words; `None` if weights stay floats.
        source: bytes of the checkpoint that are read, by dtype.
        linked: bytes of weights that stay in the checkpoint's own files.
        written: bytes of weights that are converted, and written once for all graphs.
        loaded: bytes of all weights in memory on a CPU: see `IN_MEMORY`.
        on_gpu: bytes of all weights in a GPU's memory, where they have the dtype that is computed
            in. Each graph has its own copy there: one of a table that the language model's head is
            tied to counts twice.
    """

    component: str
    graphs: tuple[str, ...]
    precision: str
    quantisation: str | None
    source: Mapping[str, int]
    linked: int
    written: int
    loaded: int
    on_gpu: int


def estimate_components(
    checkpoint: Checkpoint,
    policy: PrecisionPolicy,
    quantisations: Mapping[str, Quantisation],
) -> tuple[ComponentEstimate, ...]:
    """Estimates what `export.exporter.graphs_from_checkpoint` would write for the same arguments.

    Modules are made without memory and bound to the checkpoint as traced graphs are. A parameter
    that no graph turns out to read counts too. Only a build measures which matmuls are sensitive;
    here the largest ones are taken, so that a build's files are never larger than estimated.

    Raises:
        CheckpointError: a weight is missing, or has another shape than the config says.
    """
    graphs: dict[str, list[str]] = {name: [] for name in COMPONENTS}
    plain: dict[str, set[Recipe]] = {name: set() for name in COMPONENTS}
    matrices: dict[str, set[Recipe]] = {name: set() for name in COMPONENTS}
    for component in components_from_checkpoint(checkpoint, policy):
        name = component.component
        graphs[name].append(component.graph)
        component_matrices, others = _bind_weights(component, checkpoint)
        matrices[name] |= component_matrices
        plain[name] |= others
    return tuple(
        _estimate(
            name, policy.word(name), quantisations.get(name), graphs[name], matrices[name], rest
        )
        for name, rest in plain.items()
    )


def _estimate(
    name: str,
    precision: str,
    quantisation: Quantisation | None,
    graphs: Iterable[str],
    matrices: set[Recipe],
    plain: set[Recipe],
) -> ComponentEstimate:
    dtype, source = DTYPES[precision], Counter[str]()
    for tensor in {tensor for recipe in plain | matrices for tensor in recipe.source.sources}:
        source[tensor.dtype] += tensor.length
    if quantisation is not None:
        matrices = set(_quantise(matrices, quantisation))
    on_gpu = sum(recipe.nbytes for recipe in (*plain, *matrices))
    recipes = plain | matrices
    if quantisation is None:  # as `export.exporter` binds them
        recipes = {narrow(recipe, dtype) for recipe in recipes}
    linked = sum(recipe.nbytes for recipe in recipes if recipe.in_place)
    return ComponentEstimate(
        component=name,
        graphs=tuple(graphs),
        precision=precision,
        quantisation=None if quantisation is None else str(quantisation),
        source=dict(source),
        linked=linked,
        written=sum(recipe.nbytes for recipe in recipes) - linked,
        loaded=sum(recipe.nbytes * _growth_in_memory(recipe) for recipe in recipes),
        on_gpu=on_gpu,
    )


def _growth_in_memory(recipe: Recipe) -> int:
    scales = isinstance(recipe, Scales) and not isinstance(recipe, ZeroPoints)
    return IN_MEMORY.get("scales" if scales else recipe.dtype, 1)


def _bind_weights(component: Component, checkpoint: Checkpoint) -> tuple[set[Recipe], set[Recipe]]:
    """Returns the recipes of matrices that activations are multiplied by, and of all else."""
    with without_memory():
        module = component.module()
    weights = dict(_weights(module, component.precision))
    recipes = bind(weights, checkpoint.tensors, tied_weights(module))
    matrices = set(_matrices(module))
    return {recipes[name] for name in matrices}, {
        recipe for name, recipe in recipes.items() if name not in matrices
    }


def _weights(module: Any, precision: str) -> Iterable[tuple[str, tuple[tuple[int, ...], str]]]:
    for path, child in module.named_modules():
        dtype = weight_dtype(path, child, precision)
        for name, parameter in child.named_parameters(recurse=False):
            yield f"{path}.{name}".lstrip("."), (tuple(parameter.shape), dtype)


def _matrices(module: Any) -> Iterable[str]:
    """Yields the names of the matrices that activations are multiplied by."""
    for path, child in module.named_modules():
        if isinstance(child, torch.nn.Linear):
            yield f"{path}.weight"


def _quantise(matrices: set[Recipe], quantisation: Quantisation) -> Iterator[Recipe]:
    """Yields the recipes that `export.quantisation` replaces those of matrices with."""
    largest = sorted(matrices, key=lambda recipe: recipe.nbytes, reverse=True)
    spared = math.ceil(quantisation.sensitive * len(largest))
    precise = replace(quantisation, bits=8, method="rtn")
    for recipe in largest[:spared]:
        stays_float = quantisation.activations != "float"
        yield from (recipe,) if stays_float else _quantise_matrix(recipe, precise)
    for recipe in largest[spared:]:
        yield from _quantise_matrix(recipe, quantisation)


def _quantise_matrix(recipe: Recipe, quantisation: Quantisation) -> Iterator[Recipe]:
    """Yields the recipes of one quantised matrix."""
    source = recipe.source
    if quantisation.activations != "float":
        yield from weights_and_scales(source, quantisation.format, recipe.dtype)
        return
    matrix = BlockwiseMatrix.from_recipe(recipe, quantisation)
    yield Integers(source=source, dtype="uint8", matrix=matrix)
    yield Scales(source=source, dtype=matrix.dtype, matrix=matrix)
    if not matrix.symmetric:
        yield ZeroPoints(source=source, dtype="uint8", matrix=matrix)
