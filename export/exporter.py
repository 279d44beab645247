"""Checkpoint to ONNX graphs on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from iblip.export.artifact.verified_graph import OnnxGraph
from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.components.component import Component
from iblip.export.components.graphs_of_checkpoint import components_from_checkpoint
from iblip.export.graph.source_digests import SourceDigests
from iblip.export.graph.trace_cache import TraceCache, trace_key
from iblip.export.graph.tracing import Trace, trace
from iblip.export.graph.writing import BoundGraph, size_of_weights, write_graphs
from iblip.export.precision import DTYPES, PrecisionPolicy
from iblip.export.progress import Progress
from iblip.export.quantisation.calibration import measure
from iblip.export.quantisation.graph import quantise
from iblip.export.quantisation.measuring import Measurements
from iblip.export.quantisation.options import Quantisation, QuantisationOptions
from iblip.export.quantisation.options import quantisations as quantisations_of
from iblip.export.weights.binding import bind
from iblip.export.weights.fit import check_fit
from iblip.export.weights.widening import widen_in_graph


def graphs_from_checkpoint(
    checkpoint: Checkpoint,
    policy: PrecisionPolicy,
    directory: Path,
    progress: Progress,
    quantisations: Mapping[str, Quantisation] | None = None,
    file_digests: dict[Path, str] | None = None,
    traces: TraceCache | None = None,
) -> tuple[OnnxGraph, ...]:
    """Writes every graph of `checkpoint` below `directory`, as `<component>/<graph>.onnx`.

    Args:
        checkpoint: what is exported.
        policy: the precision of every component.
        directory: exists; gets a folder a component.
        progress: reports each graph.
        quantisations: by component, as from `export.quantisation.options.quantisations`; `None` is
            what it makes of `policy` without options.
        file_digests: filled with the sha256 of every file of the checkpoint, in hexadecimal, by
            path; they are hashed while graphs are traced.
        traces: where traced graphs are loaded from, and kept; `None` traces every graph.

    Raises:
        CheckpointError: a weight is missing, has another shape than the config says, or belongs to
            no graph. Nothing is written then.
        ExportError: a graph cannot be traced, or a weight leaves the range of its precision.
    """
    components = components_from_checkpoint(checkpoint, policy)
    with _digests(checkpoint, components) as digests:
        traced = [
            _load_or_trace(component, traces, progress, f" ({number} of {len(components)})")
            for number, component in enumerate(components, 1)
        ]
        check_fit(
            {name: shape for graph in traced for name, (shape, _) in graph.weights.items()},
            checkpoint.tensors,
            {name: other for graph in traced for name, other in graph.tied.items()},
            known={name for graph in traced for name in graph.parameters},
        )
        if quantisations is None:
            quantisations = quantisations_of(policy, QuantisationOptions())
        measured = measure(traced, checkpoint, quantisations, progress)
        bound = [
            _bind_weights(graph, checkpoint, measured.get(graph.component.component))
            for graph in traced
        ]
        graphs = _write(bound, directory, progress, digests)
        if file_digests is not None:
            file_digests.update(digests.finish())
    return graphs


def _digests(checkpoint: Checkpoint, components: Sequence[Component]) -> SourceDigests:
    """Of the checkpoint's files, and of tensors that graphs may read where they lie."""
    dtypes = {DTYPES[component.precision] for component in components}
    tensors = (source for weight in checkpoint.tensors.values() for source in weight.sources)
    return SourceDigests(checkpoint.files, [one for one in tensors if one.dtype in dtypes])


def onnx_from_component(
    component: Component,
    checkpoint: Checkpoint,
    directory: Path,
    progress: Progress,
    quantisation: Quantisation | None = None,
    traces: TraceCache | None = None,
) -> OnnxGraph:
    """Writes one graph of a checkpoint, and ignores tensors that belong to other graphs.

    It can be quantised if no other graph has to be run to measure it.

    Args:
        component: what is exported; with `traces`, one of
            `export.components.graphs_of_checkpoint`.
        checkpoint, directory, progress, traces: as `graphs_from_checkpoint` takes them.
        quantisation: of the component, if any.

    Raises:
        CheckpointError, ExportError: as `graphs_from_checkpoint` does.
    """
    traced = _load_or_trace(component, traces, progress)
    name = component.component
    quantisations = {} if quantisation is None else {name: quantisation}
    measured = measure([traced], checkpoint, quantisations, progress).get(name)
    with SourceDigests((), ()) as digests:
        bound = _bind_weights(traced, checkpoint, measured)
        (graph,) = _write([bound], directory, progress, digests)
    return graph


def _load_or_trace(
    component: Component,
    traces: TraceCache | None,
    progress: Progress,
    place: str = "",
) -> Trace:
    """Returns the trace of a component; `place` says which of all graphs it is."""
    if traces is None:
        return _trace(component, progress, place)
    key = trace_key(component)
    if (cached := traces.load(key, component)) is not None:
        progress.note(f"{component.title} has been traced before, and is taken from {traces}")
        return cached
    traced = _trace(component, progress, place)
    traces.keep(key, traced)
    return traced


def _trace(component: Component, progress: Progress, place: str) -> Trace:
    with progress.stage(f"trace {component.title}{place}"):
        return trace(component)


def _bind_weights(
    traced: Trace, checkpoint: Checkpoint, measured: Measurements | None = None
) -> BoundGraph:
    recipes = bind(traced.weights, checkpoint.tensors, traced.tied)
    if measured is None:
        dtype = DTYPES[traced.component.precision]
        recipes = widen_in_graph(traced.model, recipes, dtype)
        return BoundGraph(component=traced.component, model=traced.model, recipes=recipes)
    return BoundGraph(
        component=traced.component,
        model=traced.model,
        recipes=quantise(traced.model, recipes, measured),
        quantisation=measured.to_json(),
    )


def _write(
    bound: Sequence[BoundGraph], directory: Path, progress: Progress, digests: SourceDigests
) -> tuple[OnnxGraph, ...]:
    with progress.stage("write weights", size_of_weights(bound), "B") as advance:
        return write_graphs(bound, directory, advance, digests)
