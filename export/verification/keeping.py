"""Keeps some cases of a verification for `References`, small enough to travel with a build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from iblip.export.artifact.references import FEWEST, VALUES, GraphCase, Sample
from iblip.export.artifact.verified_graph import OnnxGraph
from iblip.export.verification.case import Case

FEED_BYTES = 4 * 2**20
"""Most bytes of a kept case's inputs, constant ones left out: they compress to nothing."""

ROWS = 2
"""Rows of the case that is kept beside the first one, of a language model's graphs: the last such
case decodes with a past."""


class CaseKeeper:
    """Collects cases: of each graph the first one, and of a language model's the last of `ROWS`.

    Args:
        graphs: of the build; their contracts give the dtypes.
    """

    def __init__(self, graphs: Sequence[OnnxGraph]) -> None:
        self._graphs = {f"{graph.component}/{graph.name}": graph for graph in graphs}
        self._first: dict[str, GraphCase] = {}
        self._last: dict[str, GraphCase] = {}
        self._omitted: dict[str, str] = {}

    def __call__(self, case: Case) -> None:
        """Takes a case that the verification compares."""
        graph = self._graphs[case.graph]
        is_new = case.graph not in self._first and case.graph not in self._omitted
        if not is_new and (graph.component != "language_model" or _rows(case) != ROWS):
            return
        kept = _keep(case, graph)
        if kept is not None:
            (self._first if is_new else self._last)[case.graph] = kept
        elif is_new:
            self._omitted[case.graph] = f"its inputs are more than {FEED_BYTES >> 20} MiB"

    @property
    def cases(self) -> list[GraphCase]:
        """Those that are kept, in the order of the graphs."""
        both = (self._first, self._last)
        return [kept[title] for title in self._graphs for kept in both if title in kept]

    @property
    def omitted(self) -> Mapping[str, str]:
        """By graph: why it has none."""
        return self._omitted


def _rows(case: Case) -> int:
    return int(next(iter(case.feed.values())).shape[0])


def _keep(case: Case, graph: OnnxGraph) -> GraphCase | None:
    """The case in the graph's dtypes; `None` if its inputs are too large."""
    specs = graph.contract.inputs
    feed = {spec.name: case.feed[spec.name].astype(spec.numpy_dtype) for spec in specs}
    varied = (array for array in feed.values() if array.size and np.any(array != array.flat[0]))
    if sum(array.nbytes for array in varied) > FEED_BYTES:
        return None
    most = max(FEWEST, VALUES // len(case.expected))
    return GraphCase(
        graph=case.graph,
        name=case.name,
        feed=feed,
        expected={
            name: Sample.of(expected, case.real.get(name), most)
            for name, expected in case.expected.items()
        },
    )
