"""Verifies graphs: compares them with transformers on every case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from iblip.export.artifact.verified_graph import OnnxGraph, VerifiedGraph
from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.errors import VerificationError
from iblip.export.graph.onnxruntime_values import run
from iblip.export.progress import Progress
from iblip.export.verification.case import Case
from iblip.export.verification.cases import cases
from iblip.export.verification.comparison import Comparison, compare, figures, limits_of
from iblip.export.verification.reference import Reference
from iblip.export.verification.references import reference_of
from iblip.export.verification.sessions import open_graph


def compare_graphs(
    graphs: Sequence[OnnxGraph],
    checkpoint: Checkpoint,
    progress: Progress,
    reference: Reference | None = None,
    keep: Callable[[Case], None] | None = None,
) -> dict[str, list[Comparison]]:
    """Compares every graph with transformers' own modules; see `export.verification.cases`.

    Args:
        graphs: of one build.
        checkpoint: what it was built from.
        progress: reports the stage.
        reference: of the checkpoint; `None` loads it.
        keep: called with every case, such as a `CaseKeeper`.

    Returns:
        The comparison of every output of every case, by `component/graph`.
    """
    sessions = {f"{graph.component}/{graph.name}": open_graph(graph.path) for graph in graphs}
    by_title = {f"{graph.component}/{graph.name}": graph for graph in graphs}
    comparisons: dict[str, list[Comparison]] = {title: [] for title in by_title}
    with progress.stage("compare graphs with transformers"):
        for case in cases(checkpoint, reference or reference_of(checkpoint)):
            graph = by_title[case.graph]
            if keep is not None:
                keep(case)
            comparisons[case.graph] += _compare(graph, sessions[case.graph], case)
    return comparisons


def verify_graphs(
    graphs: Sequence[OnnxGraph],
    checkpoint: Checkpoint,
    progress: Progress,
    keep: Callable[[Case], None] | None = None,
) -> tuple[VerifiedGraph, ...]:
    """Turns graphs into verified graphs, by `compare_graphs`.

    Args:
        graphs, checkpoint, progress, keep: as `compare_graphs` takes them.

    Raises:
        VerificationError: outputs leave the limits of their precision. The message lists the ten
            worst, and by how much.
    """
    comparisons = compare_graphs(graphs, checkpoint, progress, keep=keep)
    failed = [(title, c) for title, results in comparisons.items() for c in results if not c]
    if failed:
        failed.sort(key=lambda item: item[1].cosine)
        lines = "\n  ".join(f"{title}: {comparison}" for title, comparison in failed[:10])
        raise VerificationError(
            f"{len(failed)} comparisons with transformers leave their limits"
            f" ({_limits(failed)}):\n  {lines}"
        )
    return tuple(
        VerifiedGraph(graph=graph, figures=figures(comparisons[f"{graph.component}/{graph.name}"]))
        for graph in graphs
    )


def _limits(failed: list[tuple[str, Comparison]]) -> str:
    return ", ".join(sorted({str(comparison.limits) for _, comparison in failed}))


def _compare(graph: OnnxGraph, session: Any, case: Case) -> list[Comparison]:
    feed = {
        spec.name: case.feed[spec.name].astype(spec.numpy_dtype) for spec in graph.contract.inputs
    }
    graph.contract.check_feed(feed)
    names = [spec.name for spec in graph.contract.outputs]
    outputs = run(session, names, feed)
    return [
        compare(
            _real(outputs[name], case.real.get(name)),
            _real(expected, case.real.get(name)),
            case=case.name,
            output=name,
            limits=limits_of(graph.precision, feed),
        )
        for name, expected in case.expected.items()
    ]


def _real(array: npt.NDArray[Any], mask: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    return array if mask is None else array[np.broadcast_to(mask, array.shape)]
