"""`graphs`: every graph on its own engine, against what transformers computed at the build."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from iblip.engines.kinds import OPENVINO
from iblip.engines.runners import OPENERS, open_runner
from iblip.export.artifact.manifest import LANGUAGE_MODEL
from iblip.export.artifact.references import GraphCase
from iblip.export.errors import IblipError
from iblip.export.verification.comparison import Comparison, compare, limits_of
from iblip.serving.proving.placement import NOT_SERVED
from iblip.serving.proving.record import Fact
from iblip.serving.proving.subject import NothingToMeasureError, Subject


def compare_graphs(subject: Subject) -> Iterator[Fact]:
    """The largest difference and the smallest cosine of each graph, over its cases."""
    references, compared = subject.compared, False
    for component, record in subject.manifest.components.items():
        for graph in record.graphs:
            title = f"{component}/{graph}"
            cases = [case for case in references.cases if case.graph == title]
            if reason := _find_obstacle(subject, component, graph, cases):
                yield Fact(name=title, value=f"not compared: {reason}")
                continue
            compared = True
            try:
                results = _run(subject, component, graph, cases)
            except IblipError as error:
                yield Fact(name=title, value=str(error), wrong=True)
                continue
            yield from _judge(title, results)
    if not compared:
        raise NothingToMeasureError("no engine of the build runs a graph that it holds a case of")


def _find_obstacle(
    subject: Subject, component: str, graph: str, cases: Sequence[GraphCase]
) -> str | None:
    """Why a graph cannot be compared; `None` if it can."""
    engine, title = subject.manifest.components[component].engine, f"{component}/{graph}"
    alone = component == LANGUAGE_MODEL and engine.kind == OPENVINO
    if alone or engine.kind not in OPENERS:
        return f"{engine.kind} runs the language model by itself; its answers are compared"
    if graph not in engine.files:
        return f"{engine.kind} has no plan of it"
    if subject.stubs and title in NOT_SERVED:
        return "no server opens it, and its shapes depend on values, which stubs do not compute"
    return None if cases else subject.references.omitted.get(title, "the build holds no case of it")


def _run(
    subject: Subject, component: str, graph: str, cases: Sequence[GraphCase]
) -> list[Comparison]:
    precision, results = subject.manifest.components[component].precision, []
    with open_runner(subject.directory, subject.manifest, component, graph) as runner:
        for case in cases:
            outputs, limits = runner.infer(case.feed), limits_of(precision, case.feed)
            for name, sample in case.expected.items():
                output = np.asarray(outputs[name])
                # A shape that differs leaves nothing that could be compared.
                found = (
                    output.ravel()[sample.at].astype(np.float32)
                    if output.shape == sample.shape
                    else np.full(sample.values.shape, np.nan, np.float32)
                )
                results.append(
                    compare(found, sample.values, case=case.name, output=name, limits=limits)
                )
    return results


def _judge(title: str, results: Sequence[Comparison]) -> Iterator[Fact]:
    farthest = max(results, key=lambda result: result.max_abs)
    oddest = min(results, key=lambda result: result.cosine)
    for name, worst, value, limit in (
        ("cosine", oddest, oddest.cosine, oddest.limits.cosine),
        ("largest difference", farthest, farthest.max_abs, farthest.limits.max_abs),
    ):
        yield Fact(
            name=f"{title}: {name}",
            value=float(value),
            limit=limit,
            sense="least" if name == "cosine" else "most",
            where=f"{worst.output}, {worst.case}",
        )
