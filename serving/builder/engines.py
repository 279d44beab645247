"""The engine of each component of a build."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from iblip.engines.memory import MEMORY
from iblip.export.artifact.manifest import EngineRecord
from iblip.export.artifact.verified_graph import VerifiedGraph
from iblip.export.progress import Progress
from iblip.serving.builder.settled import SettledBuild


def build_engines(
    work: Path, settled: SettledBuild, verified: Sequence[VerifiedGraph], progress: Progress
) -> dict[str, EngineRecord]:
    """Builds the engine of each component in `work`; returns the records, by component.

    Those that run on a GPU say what they take of its memory (`engines.memory`).
    """
    records = _build_engines(work, settled, verified, progress)
    rows = settled.memory.components if settled.memory else ()
    for row in rows:
        record = records[row.component]
        details = {**record.details, MEMORY: row.to_json()}
        records[row.component] = replace(record, details=details)
    return records


def _build_engines(
    work: Path, settled: SettledBuild, verified: Sequence[VerifiedGraph], progress: Progress
) -> dict[str, EngineRecord]:
    from iblip.engines.kinds import KINDS

    records = {}
    for component, kind in settled.engines.items():
        if kind == "vllm":
            records[component] = _build_vllm(work, settled, progress)
            continue
        proofs = [proof for proof in verified if proof.graph.component == component]
        if kind in KINDS and KINDS[kind].plans:
            records[component] = _build_plan(work, settled, kind, proofs[0], progress)
        else:
            records[component] = _record_graphs(work, settled, kind, proofs)
    return records


def _build_vllm(work: Path, settled: SettledBuild, progress: Progress) -> EngineRecord:
    from iblip.engines.language_model.vllm.building import vllm_from_checkpoint

    assert settled.vllm is not None
    return vllm_from_checkpoint(
        settled.checkpoint,
        work,
        dtype=settled.policy.dtype("language_model"),
        settings=settled.vllm,
        progress=progress,
    )


def _record_graphs(
    work: Path, settled: SettledBuild, kind: str, proofs: Sequence[VerifiedGraph]
) -> EngineRecord:
    """An engine that reads the graphs themselves; TensorRT's providers want their sizes, too."""
    from iblip.serving.builder.sizes import PROFILED

    details = {}
    if kind in PROFILED:
        (graph,) = (proof.graph for proof in proofs)
        profiles = settled.sizes.of_contract(graph.contract)
        details["profiles"] = [profile.to_json() for profile in profiles]
    files = {p.graph.name: str(p.graph.path.relative_to(work)) for p in proofs}
    return EngineRecord(kind=kind, files=files, details=details)


def _build_plan(
    work: Path, settled: SettledBuild, kind: str, proof: VerifiedGraph, progress: Progress
) -> EngineRecord:
    """A plan of one graph, from the engine cache where that has it."""
    from iblip.engines.cache.cached_plan import cached_plan
    from iblip.engines.cache.store import EngineCache
    from iblip.engines.tensorrt.libraries import find_library

    graph, cache = proof.graph, settled.caches.engines
    path = work / "engines" / graph.component / f"{graph.name}.plan"
    path.parent.mkdir(parents=True)
    plan = cached_plan(
        proof,
        path,
        cache=EngineCache(cache) if cache else None,
        library=find_library(kind),
        profiles=settled.sizes.of_contract(graph.contract),
        options=settled.plans,
        build=str(settled.destination),
        progress=progress,
    )
    files = {graph.name: str(plan.path.relative_to(work))}
    return EngineRecord(kind=kind, files=files, details=plan.details)
