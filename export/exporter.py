"""Checkpoint to ONNX graphs on disk."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from export.checkpoint import Checkpoint
from export.components.component import Component
from export.components.graphs_of_checkpoint import components_from_checkpoint
from export.errors import ExportError
from export.graphs import OnnxGraph
from export.progress import Progress
from export.quantisation import quantise
from export.tracing import trace
from export.weights import Recipe, bind
from export.writing import Casts, write_graph

logger = logging.getLogger(__name__)


def graphs_from_checkpoint(
    checkpoint: Checkpoint, precision: Mapping[str, str], directory: Path, progress: Progress
) -> tuple[OnnxGraph, ...]:
    """Writes every graph of `checkpoint` below `directory`, as `<component>/<graph>.onnx`.

    Args:
        checkpoint: what is exported.
        precision: of every component, as from `export.precision.parse_precision`.
        directory: exists; gets a folder a component.
        progress: told of each graph.

    Raises:
        CheckpointError: a weight is missing or has another shape than the config says.
        ExportError: a graph cannot be traced, or a weight leaves the range of its precision.
    """
    casts: dict[str, Casts] = defaultdict(dict)  # by component: a folder each
    return tuple(
        onnx_from_component(component, checkpoint, directory, progress, casts[component.component])
        for component in components_from_checkpoint(checkpoint, precision)
    )


def onnx_from_component(
    component: Component,
    checkpoint: Checkpoint,
    directory: Path,
    progress: Progress,
    casts: Casts | None = None,
) -> OnnxGraph:
    """Traces one component and binds its weights. Raises as `graphs_from_checkpoint` does.

    `casts` are the weights that other graphs of the component have written.
    """
    target = directory / component.component
    target.mkdir(exist_ok=True)
    with progress.stage(f"trace {component.title}"):
        model, tied = trace(component)
    wanted = {}
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            if value.shape is None or value.dtype is None:
                raise ExportError(f"{component.title}: the trace gave {name} no shape or no dtype")
            wanted[name] = (tuple(value.shape.numpy()), _dtype(value.dtype.name.lower()))
    recipes: dict[str, Recipe] = bind(wanted, checkpoint.tensors, tied)
    if component.precision == "int4":
        recipes = quantise(model, recipes)
    total = sum(recipe.nbytes for recipe in recipes.values())
    logger.info("%s: %d weights, %d bytes", component.title, len(recipes), total)
    with progress.stage(f"write {component.title}", total, "B") as advance:
        return write_graph(component, model, recipes, target, advance, casts)


def _dtype(word: str) -> str:
    """onnx-ir's word for a dtype (`float`, `float16`) to the contract's."""
    return "float32" if word == "float" else word
