"""The manifest of a build."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iblip.export.artifact.manifest import (
    ComponentRecord,
    EngineRecord,
    GraphRecord,
    Manifest,
)
from iblip.export.artifact.verified_graph import OnnxGraph, VerifiedGraph
from iblip.export.system.toolchain import library_versions
from iblip.serving.builder.settled import SettledBuild


def manifest_of_build(
    work: Path,
    settled: SettledBuild,
    verified: tuple[VerifiedGraph, ...],
    records: Mapping[str, EngineRecord],
    files: Mapping[str, str],
) -> Manifest:
    """The manifest of the build in `work`, before its answers are compared.

    Args:
        work: the build in the making.
        settled: what it is.
        verified: its graphs.
        records: of its engines, by component.
        files: sha256 of the checkpoint's files, in hexadecimal, by name.
    """
    from iblip.export.checkpoint.facts import language_model_facts, preprocessing, write_tokenizers

    checkpoint, precision = settled.checkpoint, settled.policy.to_json()
    components = {
        component: ComponentRecord(
            precision=word,
            graphs={
                proof.graph.name: _record_graph(work, proof.graph)
                for proof in verified
                if proof.graph.component == component
            },
            engine=records[component],
            quantisation=next(
                (p.graph.quantisation for p in verified if p.graph.component == component), {}
            ),
        )
        for component, word in precision.items()
    }
    return Manifest(
        name=checkpoint.name,
        family=checkpoint.family.name,
        source={
            **settled.source.to_json(),
            "path": str(checkpoint.directory),
            "synthetic": checkpoint.synthetic,
            "files": files,
        },
        precision=precision,
        components=components,
        preprocessing=preprocessing(checkpoint),
        text=write_tokenizers(checkpoint, work),
        language_model=language_model_facts(checkpoint),
        limits=settled.limits,
        verification=_collect_figures(verified),
        tools=library_versions(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _record_graph(work: Path, graph: OnnxGraph) -> GraphRecord:
    return GraphRecord(
        path=str(graph.path.relative_to(work)),
        weights=tuple(str(path.relative_to(work)) for path in graph.weights),
        digest=graph.digest,
        contract=graph.contract,
    )


def _collect_figures(verified: tuple[VerifiedGraph, ...]) -> dict[str, Any]:
    skipped = next((proof.skipped for proof in verified if proof.skipped), None)
    if skipped:
        return {"skipped": skipped}
    figures = {f"{p.graph.component}/{p.graph.name}": dict(p.figures) for p in verified}
    return {"graphs": figures}
