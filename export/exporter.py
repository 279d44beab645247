"""Checkpoint to ONNX graphs on disk."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from export.checkpoint import Checkpoint
from export.components.component import Component
from export.components.graphs_of_checkpoint import components_from_checkpoint
from export.fit import check_fit
from export.graphs import OnnxGraph
from export.progress import Progress
from export.quantisation.graph import quantise
from export.quantisation.options import Quantisation, QuantisationOptions
from export.quantisation.options import quantisations as quantisations_of
from export.tracing import Trace, trace
from export.weights import Recipe, bind
from export.writing import Casts, write_graph

logger = logging.getLogger(__name__)


def graphs_from_checkpoint(
    checkpoint: Checkpoint,
    precision: Mapping[str, str],
    directory: Path,
    progress: Progress,
    quantisations: Mapping[str, Quantisation] | None = None,
) -> tuple[OnnxGraph, ...]:
    """Writes every graph of `checkpoint` below `directory`, as `<component>/<graph>.onnx`.

    Args:
        checkpoint: what is exported.
        precision: of every component, as from `export.precision.parse_precision`.
        directory: exists; gets a folder a component.
        progress: told of each graph.
        quantisations: by component, as from `export.quantisation.options.quantisations`; `None` is
            what it makes of `precision` without options.

    Raises:
        CheckpointError: a weight is missing, has another shape than the config says, or is there
            and belongs to no graph. Nothing is written then.
        ExportError: a graph cannot be traced, or a weight leaves the range of its precision.
    """
    components = components_from_checkpoint(checkpoint, precision)
    traces = [_traced(component, progress) for component in components]
    check_fit(
        {name: wish for traced in traces for name, wish in traced.wanted.items()},
        {name for traced in traces for name in traced.parameters},
        checkpoint.tensors,
        {name: other for traced in traces for name, other in traced.tied.items()},
    )
    casts: dict[str, Casts] = defaultdict(dict)  # by component: a folder each
    if quantisations is None:
        quantisations = quantisations_of(precision, QuantisationOptions())
    return tuple(
        _written(
            traced,
            checkpoint,
            directory,
            progress,
            casts[traced.component.component],
            quantisations.get(traced.component.component),
        )
        for traced in traces
    )


def onnx_from_component(
    component: Component,
    checkpoint: Checkpoint,
    directory: Path,
    progress: Progress,
) -> OnnxGraph:
    """Writes one graph of a checkpoint, whatever else the checkpoint has.

    Raises:
        CheckpointError, ExportError: as `graphs_from_checkpoint` does.
    """
    return _written(_traced(component, progress), checkpoint, directory, progress, {})


def _traced(component: Component, progress: Progress) -> Trace:
    with progress.stage(f"trace {component.title}"):
        return trace(component)


def _written(
    traced: Trace,
    checkpoint: Checkpoint,
    directory: Path,
    progress: Progress,
    casts: Casts,
    quantisation: Quantisation | None = None,
) -> OnnxGraph:
    """Binds the weights. `casts` are those that other graphs of the component have written."""
    component, model = traced.component, traced.model
    target = directory / component.component
    target.mkdir(exist_ok=True)
    recipes: dict[str, Recipe] = bind(traced.wanted, checkpoint.tensors, traced.tied)
    if quantisation is not None:
        recipes = quantise(model, recipes, quantisation)
    total = sum(recipe.nbytes for recipe in recipes.values())
    logger.info("%s: %d weights, %d bytes", component.title, len(recipes), total)
    with progress.stage(f"write {component.title}", total, "B") as advance:
        return write_graph(component, model, recipes, target, advance, casts)
