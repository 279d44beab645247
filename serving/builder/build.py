"""`export build`: checkpoint to a build directory that can be served."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iblip.export.artifact.directory import new_build
from iblip.export.artifact.manifest import (
    MANIFEST,
)
from iblip.export.artifact.verified_graph import OnnxGraph, VerifiedGraph
from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.errors import VerificationError
from iblip.export.progress import Progress, Silent
from iblip.serving.builder.engines import engine_records
from iblip.serving.builder.inputs import difference, inputs_of
from iblip.serving.builder.options import BuildOptions
from iblip.serving.builder.records import manifest_of_build
from iblip.serving.builder.settling import prepared

if TYPE_CHECKING:
    from iblip.engines.selection import EngineChoice

logger = logging.getLogger(__name__)


def build(options: BuildOptions, progress: Progress | None = None) -> Path:
    """Builds, verifies, and moves into place; returns the build directory.

    Where that is the same build already, it is left as it is (`serving.builder.inputs`).

    Raises:
        OptionError: an option that does not fit this machine or the others.
        CheckpointError: the checkpoint is missing, truncated or not supported.
        ExportError, EngineError: a graph or an engine cannot be made.
        VerificationError: the build's numbers or answers leave their limits; nothing is replaced.
        BuildDirectoryError: the destination cannot be written, or is something else.
    """
    progress, destination = progress or Silent(), options.destination.absolute()
    options, checkpoint, engine = prepared(options, progress)
    inputs = inputs_of(options, checkpoint, engine)
    if not options.force and (destination / MANIFEST).exists():
        change = difference(destination, inputs)
        if change is None:
            progress.note(f"{destination} is this build already. --force makes it again.")
            return destination
        progress.note(f"{destination} is built anew: {change}")
    with new_build(destination) as work:
        digests = _fill(work, options, checkpoint, engine, progress)
        inputs.write(work, digests)
    return destination


def _fill(
    work: Path,
    options: BuildOptions,
    checkpoint: Checkpoint,
    engine: EngineChoice,
    progress: Progress,
) -> dict[Path, str]:
    """Makes the build in `work`; returns the sha256 of the checkpoint's files."""
    from iblip.engines.evaluation.texts import text_reports
    from iblip.export.exporter import graphs_from_checkpoint
    from iblip.export.graph.trace_cache import TraceCache
    from iblip.serving.repository.assembling import repository_from_engines

    (work / "graphs").mkdir()
    digests: dict[Path, str] = {}
    graphs = graphs_from_checkpoint(
        checkpoint,
        options.components,
        work / "graphs",
        progress,
        options.quantisations,
        file_digests=digests,
        traces=TraceCache(options.trace_cache) if options.trace_cache else None,
    )
    verified = _proven(graphs, options, checkpoint, progress)
    records = engine_records(work, verified, options, engine, checkpoint, progress)
    files = checkpoint.digests(digests)
    manifest = manifest_of_build(work, options, checkpoint, verified, records, files)
    manifest.write(work)
    if options.verify:
        text = text_reports(
            work, checkpoint, progress, examples=options.examples, limit=options.limit
        )["text"]
        _check_answers(text)
        manifest = replace(manifest, verification={**manifest.verification, "text": text})
        manifest.write(work)
    with progress.stage("assemble the Triton repository"):
        repository_from_engines(
            work, manifest, max_batch=manifest.limits.max_batch, backend=options.triton_backend
        )
    return digests


def _check_answers(text: Mapping[str, Any]) -> None:
    if not text.get("passed", True):
        cases = "\n  ".join(str(case) for case in text["different"][:3])
        raise VerificationError(
            f"the build says the same as transformers on {text['same_text']} of {text['examples']}"
            f" examples; wanted {text['wanted_agreement']:.0%}. It differs, for instance, on:"
            f"\n  {cases}"
        )


def _proven(
    graphs: tuple[OnnxGraph, ...],
    options: BuildOptions,
    checkpoint: Checkpoint,
    progress: Progress,
) -> tuple[VerifiedGraph, ...]:
    if not options.verify:
        progress.note("verification is skipped (--no-verify); the manifest says so")
        return tuple(VerifiedGraph.without_proof(graph, reason="--no-verify") for graph in graphs)
    from iblip.export.verification.graphs import verify_graphs

    return verify_graphs(graphs, checkpoint, progress)
