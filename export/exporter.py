"""Checkpoint to ONNX graphs on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from iblip.export.artifact.verified_graph import OnnxGraph
from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.components.component import Component
from iblip.export.components.graphs_of_checkpoint import components_from_checkpoint
from iblip.export.graph.trace_cache import TraceCache, trace_key
from iblip.export.graph.tracing import Trace, trace
from iblip.export.graph.writing import Bound, bytes_of, write_graphs
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
        progress: told of each graph.
        quantisations: by component, as from `export.quantisation.options.quantisations`; `None` is
            what it makes of `policy` without options.
        file_digests: gets the sha256 of every file of the checkpoint, in hexadecimal: they are
            taken while its weights are read.
        traces: where traced graphs are taken from, and kept; `None` traces all.

    Raises:
        CheckpointError: a weight is missing, has another shape than the config says, or is there
            and belongs to no graph. Nothing is written then.
        ExportError: a graph cannot be traced, or a weight leaves the range of its precision.
    """
    components = components_from_checkpoint(checkpoint, policy)
    traced = [_taken(component, checkpoint, traces, progress) for component in components]
    check_fit(
        {name: wish for one in traced for name, wish in one.wanted.items()},
        {name for one in traced for name in one.parameters},
        checkpoint.tensors,
        {name: other for one in traced for name, other in one.tied.items()},
    )
    if quantisations is None:
        quantisations = quantisations_of(policy, QuantisationOptions())
    measured = measure(traced, checkpoint, quantisations, progress)
    bound = [_bound(one, checkpoint, measured.get(one.component.component)) for one in traced]
    return _written(bound, directory, progress, checkpoint.files, file_digests)


def onnx_from_component(
    component: Component,
    checkpoint: Checkpoint,
    directory: Path,
    progress: Progress,
    quantisation: Quantisation | None = None,
    traces: TraceCache | None = None,
) -> OnnxGraph:
    """Writes one graph of a checkpoint, whatever else the checkpoint has.

    It can be quantised where no other graph has to be run to measure it.

    Args:
        component: what is exported; with `traces`, one of
            `export.components.graphs_of_checkpoint`.
        checkpoint, directory, progress, traces: as `graphs_from_checkpoint` takes them.
        quantisation: of the component, if any.

    Raises:
        CheckpointError, ExportError: as `graphs_from_checkpoint` does.
    """
    traced, name = _taken(component, checkpoint, traces, progress), component.component
    given = {} if quantisation is None else {name: quantisation}
    measured = measure([traced], checkpoint, given, progress).get(name)
    (graph,) = _written([_bound(traced, checkpoint, measured)], directory, progress)
    return graph


def _taken(
    component: Component, checkpoint: Checkpoint, traces: TraceCache | None, progress: Progress
) -> Trace:
    if traces is None:
        return _traced(component, progress)
    key = trace_key(component, checkpoint)
    if (known := traces.take(key, component)) is not None:
        progress.note(f"{component.title} has been traced before, and is taken from {traces}")
        return known
    traced = _traced(component, progress)
    traces.keep(key, traced)
    return traced


def _traced(component: Component, progress: Progress) -> Trace:
    with progress.stage(f"trace {component.title}"):
        return trace(component)


def _bound(traced: Trace, checkpoint: Checkpoint, measured: Measurements | None = None) -> Bound:
    recipes = bind(traced.wanted, checkpoint.tensors, traced.tied)
    if measured is None:
        dtype = DTYPES[traced.component.precision]
        recipes = widen_in_graph(traced.model, recipes, dtype)
        return Bound(component=traced.component, model=traced.model, recipes=recipes)
    return Bound(
        component=traced.component,
        model=traced.model,
        recipes=quantise(traced.model, recipes, measured),
        quantisation=measured.to_json(),
    )


def _written(
    bound: Sequence[Bound],
    directory: Path,
    progress: Progress,
    files: Sequence[Path] = (),
    file_digests: dict[Path, str] | None = None,
) -> tuple[OnnxGraph, ...]:
    with progress.stage("write weights", bytes_of(bound), "B") as advance:
        return write_graphs(bound, directory, advance, files=files, file_digests=file_digests)
