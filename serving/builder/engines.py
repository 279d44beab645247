"""The engine of each component of a build."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from iblip.engines.cache.store import EngineCache
from iblip.export.artifact.manifest import (
    EngineRecord,
)
from iblip.export.artifact.verified_graph import VerifiedGraph
from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.progress import Progress
from iblip.serving.builder.options import BuildOptions

if TYPE_CHECKING:
    from iblip.engines.selection import EngineChoice
logger = logging.getLogger(__name__)


def engine_records(
    work: Path,
    verified: tuple[VerifiedGraph, ...],
    options: BuildOptions,
    engine: EngineChoice,
    checkpoint: Checkpoint,
    progress: Progress,
) -> dict[str, EngineRecord]:
    """By component. The language model runs on ONNX Runtime, or on vLLM."""
    from iblip.engines.kinds import KINDS
    from iblip.engines.selection import language_model_kind

    records: dict[str, EngineRecord] = {}
    for component in options.components:
        proofs = [proof for proof in verified if proof.graph.component == component]
        if component == "language_model" and options.vllm is not None:
            from iblip.engines.language_model.vllm.building import vllm_from_checkpoint

            records[component] = vllm_from_checkpoint(
                checkpoint,
                work,
                precision=options.components[component],
                settings=options.vllm,
                progress=progress,
            )
        elif component == "language_model":
            kind = language_model_kind(
                options.llm_engine, engine.kind, options.components[component]
            )
            records[component] = _graphs(work, kind, proofs, options)
        elif not KINDS[engine.kind].plans:
            records[component] = _graphs(work, engine.kind, proofs, options)
        else:
            records[component] = _plan(work, proofs[0], options, engine, progress)
    return records


def _graphs(
    work: Path, kind: str, proofs: Sequence[VerifiedGraph], options: BuildOptions
) -> EngineRecord:
    """An engine that reads the graphs themselves; TensorRT's providers want their sizes, too."""
    from iblip.serving.builder.sizes import PROFILED, sizes_from_options

    details = {}
    if kind in PROFILED:
        (graph,) = (proof.graph for proof in proofs)
        profiles = sizes_from_options(options).of_contract(graph.contract)
        details["profiles"] = [profile.to_json() for profile in profiles]
    files = {p.graph.name: str(p.graph.path.relative_to(work)) for p in proofs}
    return EngineRecord(kind=kind, files=files, details=details)


def _plan(
    work: Path,
    proof: VerifiedGraph,
    options: BuildOptions,
    engine: EngineChoice,
    progress: Progress,
) -> EngineRecord:
    from iblip.engines.cache.cached_plan import cached_plan
    from iblip.engines.tensorrt.libraries import find_library
    from iblip.serving.builder.sizes import sizes_from_options

    graph = proof.graph
    path = work / "engines" / graph.component / f"{graph.name}.plan"
    path.parent.mkdir(parents=True)
    plan = cached_plan(
        proof,
        path,
        cache=EngineCache(options.engine_cache) if options.engine_cache else None,
        library=find_library(engine.kind),
        profiles=sizes_from_options(options).of_contract(graph.contract),
        options=options.plans,
        build=str(options.destination.absolute()),
        progress=progress,
    )
    files = {graph.name: str(plan.path.relative_to(work))}
    return EngineRecord(kind=engine.kind, files=files, details=plan.details)
