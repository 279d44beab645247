"""What a build would write, found without tracing and without reading a weight."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.initialization import no_init_weights

from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.components.component import Component
from iblip.export.components.graphs_of_checkpoint import components_from_checkpoint
from iblip.export.graph.tracing import tied_weights, weight_dtype
from iblip.export.precision import COMPONENTS, DTYPES, PrecisionPolicy
from iblip.export.quantisation.blocks import Numbers, Scales, ZeroPoints, blocks_of
from iblip.export.quantisation.channels import recipes_of
from iblip.export.quantisation.options import Quantisation
from iblip.export.weights.binding import bind
from iblip.export.weights.recipe import Recipe
from iblip.export.weights.widening import narrowed

IN_MEMORY: Mapping[str, int] = {"float16": 2, "bfloat16": 2, "scales": 3}
"""What ONNX Runtime makes of weights on a CPU when it loads them, by dtype: float32 of half floats;
of the scales of blocks a copy beside its packed numbers, and a sum a block."""


@dataclass(frozen=True, kw_only=True)
class ComponentPlan:
    """One component of a build that is not made yet.

    Attributes:
        component: `vision_encoder`, `qformer` or `language_model`.
        graphs: their names.
        precision: a key of `export.precision.DTYPES`.
        quantisation: in words; `None` where weights stay floats.
        source: bytes of the checkpoint that are read, by dtype.
        linked: bytes of weights that the checkpoint's own files hold.
        written: bytes of weights that are made anew, and written once for all graphs.
        loaded: bytes that they take in memory on a CPU: see `IN_MEMORY`.
    """

    component: str
    graphs: tuple[str, ...]
    precision: str
    quantisation: str | None
    source: Mapping[str, int]
    linked: int
    written: int
    loaded: int


def plan_components(
    checkpoint: Checkpoint,
    policy: PrecisionPolicy,
    quantisations: Mapping[str, Quantisation],
) -> tuple[ComponentPlan, ...]:
    """What `export.exporter.graphs_from_checkpoint` would write of the same arguments.

    Modules are made without memory and bound to the checkpoint as traced graphs are. A parameter
    that no graph reads in the end counts too. Which products are sensitive is measured by a build
    alone: here they are the largest ones, so that its files are not larger.

    Raises:
        CheckpointError: a weight is missing, or has another shape than the config says.
    """
    graphs: dict[str, list[str]] = {name: [] for name in COMPONENTS}
    plain: dict[str, set[Recipe]] = {name: set() for name in COMPONENTS}
    matrices: dict[str, set[Recipe]] = {name: set() for name in COMPONENTS}
    for component in components_from_checkpoint(checkpoint, policy):
        name = component.component
        graphs[name].append(component.graph)
        multiplied, others = _bound(component, checkpoint)
        matrices[name] |= multiplied
        plain[name] |= others
    return tuple(
        _planned(
            name, policy.word(name), quantisations.get(name), graphs[name], matrices[name], rest
        )
        for name, rest in plain.items()
    )


def _planned(
    name: str,
    precision: str,
    quantisation: Quantisation | None,
    graphs: Iterable[str],
    matrices: set[Recipe],
    plain: set[Recipe],
) -> ComponentPlan:
    source = Counter[str]()
    for tensor in {tensor for recipe in plain | matrices for tensor in recipe.source.sources}:
        source[tensor.dtype] += tensor.length
    made = matrices if quantisation is None else set(_quantised(matrices, quantisation))
    whole = plain | made
    linked = sum(recipe.nbytes for recipe in whole if recipe.in_place)
    return ComponentPlan(
        component=name,
        graphs=tuple(graphs),
        precision=precision,
        quantisation=None if quantisation is None else str(quantisation),
        source=dict(source),
        linked=linked,
        written=sum(recipe.nbytes for recipe in whole) - linked,
        loaded=sum(recipe.nbytes * _times(recipe) for recipe in whole),
    )


def _times(recipe: Recipe) -> int:
    scales = isinstance(recipe, Scales) and not isinstance(recipe, ZeroPoints)
    return IN_MEMORY.get("scales" if scales else recipe.dtype, 1)


def _bound(component: Component, checkpoint: Checkpoint) -> tuple[set[Recipe], set[Recipe]]:
    """What inputs are multiplied by, and all else that the graph binds."""
    with torch.device("meta"), no_init_weights():
        module = component.module()
    wanted = dict(_wanted(module, component.precision))
    dtype = DTYPES[component.precision]
    bound = {
        name: narrowed(recipe, dtype)
        for name, recipe in bind(wanted, checkpoint.tensors, tied_weights(module)).items()
    }
    named = set(_matrices(module))
    return {bound[name] for name in named}, {
        recipe for name, recipe in bound.items() if name not in named
    }


def _wanted(module: Any, precision: str) -> Iterable[tuple[str, tuple[tuple[int, ...], str]]]:
    for path, child in module.named_modules():
        dtype = weight_dtype(path, child, precision)
        for name, parameter in child.named_parameters(recurse=False):
            yield f"{path}.{name}".lstrip("."), (tuple(parameter.shape), dtype)


def _matrices(module: Any) -> Iterable[str]:
    """Names of the weights that inputs are multiplied by."""
    for path, child in module.named_modules():
        if isinstance(child, torch.nn.Linear):
            yield f"{path}.weight"


def _quantised(matrices: set[Recipe], quantisation: Quantisation) -> Iterator[Recipe]:
    """What `export.quantisation` makes of these."""
    largest = sorted(matrices, key=lambda recipe: recipe.nbytes, reverse=True)
    spared = math.ceil(quantisation.sensitive * len(largest))
    precise = replace(quantisation, bits=8, method="rtn")
    for recipe in largest[:spared]:
        floats = quantisation.activations != "float"
        yield from (recipe,) if floats else _parts(recipe, precise)
    for recipe in largest[spared:]:
        yield from _parts(recipe, quantisation)


def _parts(recipe: Recipe, quantisation: Quantisation) -> Iterator[Recipe]:
    """What one matrix becomes."""
    source = recipe.source
    if quantisation.activations != "float":
        yield from recipes_of(source, quantisation.format, recipe.dtype)
        return
    blocks = blocks_of(source, quantisation)
    yield Numbers(source=source, dtype="uint8", blocks=blocks)
    yield Scales(source=source, dtype="float32", blocks=blocks)
    if not blocks.symmetric:
        yield ZeroPoints(source=source, dtype="uint8", blocks=blocks)
