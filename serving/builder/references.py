"""What a build keeps of its verification for `iblip prove`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from iblip.export.artifact.manifest import Manifest
from iblip.export.artifact.references import References
from iblip.export.artifact.verified_graph import OnnxGraph
from iblip.export.examples import Example
from iblip.export.progress import Progress

if TYPE_CHECKING:
    from iblip.engines.evaluation.recording import AnswerRecorder
    from iblip.export.verification.keeping import CaseKeeper


class ReferenceKeeper:
    """Collects cases of graphs and answers while a build is verified, and writes them into it.

    Args:
        graphs: of the build.
    """

    def __init__(self, graphs: Sequence[OnnxGraph]) -> None:
        self._graphs = graphs
        self._cases: CaseKeeper | None = None
        self._answers: AnswerRecorder | None = None

    def cases(self) -> CaseKeeper:
        """What takes the cases of graphs."""
        from iblip.export.verification.keeping import CaseKeeper

        self._cases = CaseKeeper(self._graphs)
        return self._cases

    def answers(self, examples: Sequence[Example], progress: Progress) -> AnswerRecorder:
        """What takes the answers of the open build."""
        from iblip.engines.evaluation.recording import AnswerRecorder

        self._answers = AnswerRecorder(examples, progress)
        return self._answers

    def write(self, work: Path, manifest: Manifest) -> dict[str, str]:
        """Writes what was collected into the build in `work`; returns digests by path."""
        from iblip.export.weights.read_by_graph import weights_read

        cases, answers = self._cases, self._answers
        references = References(
            skipped=manifest.verification.get("skipped"),
            weights={
                f"{graph.component}/{graph.name}": weights_read(graph.path)
                for graph in self._graphs
            },
            cases=cases.cases if cases else (),
            omitted=cases.omitted if cases else {},
            pixels=answers.pixels if answers else np.zeros((0, 1, 1, 3), np.uint8),
            answers=answers.answers if answers else (),
        )
        return references.write(work)
