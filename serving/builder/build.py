"""`iblip build`: checkpoint to a build directory that can be served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from iblip.export.artifact.directory import new_build
from iblip.export.artifact.manifest import MANIFEST, Manifest
from iblip.export.artifact.verified_graph import OnnxGraph, VerifiedGraph
from iblip.export.errors import VerificationError
from iblip.export.progress import Progress, Silent
from iblip.serving.builder.dry_run import check_room
from iblip.serving.builder.engines import build_engines
from iblip.serving.builder.inputs import find_difference, inputs_of
from iblip.serving.builder.options import BuildOptions
from iblip.serving.builder.records import manifest_of_build
from iblip.serving.builder.references import ReferenceKeeper
from iblip.serving.builder.settled import SettledBuild
from iblip.serving.builder.settling import settle, with_weights


def build(options: BuildOptions, progress: Progress | None = None) -> Path:
    """Builds, verifies, and moves into place; returns the build directory.

    Where that is the same build already, it is left as it is (`serving.builder.inputs`).

    Raises:
        OptionError: an option that does not fit this machine or the others.
        CheckpointError: the checkpoint is missing, truncated or not supported, or is changed
            meanwhile.
        ExportError, EngineError: a graph or an engine cannot be made.
        VerificationError: the build's numbers or answers leave their limits; nothing is replaced.
        BuildDirectoryError: the destination cannot be written, is something else, or lies on a disk
            with too little room.
    """
    progress = progress or Silent()
    settled = with_weights(settle(options, progress), progress)
    inputs, destination = inputs_of(settled), settled.destination
    if not options.force and (destination / MANIFEST).exists():
        change = find_difference(destination, inputs)
        if change is None:
            progress.note(f"{destination} is this build already. --force makes it again.")
            return destination
        progress.note(f"{destination} is built anew: {change}")
    check_room(settled)
    with new_build(destination) as work, inputs.blamed():
        digests = _fill(work, settled, progress)
        inputs.write(work, digests)
    return destination


def _fill(work: Path, settled: SettledBuild, progress: Progress) -> dict[Path, str]:
    """Makes the build in `work`; returns the sha256 of the checkpoint's files."""
    digests: dict[Path, str] = {}
    graphs = _export_graphs(work / "graphs", settled, progress, digests)
    keeper = ReferenceKeeper(graphs)
    verified = _verify_graphs(graphs, settled, progress, keeper)
    engines = build_engines(work, settled, verified, progress)
    files = settled.checkpoint.digests(digests)
    manifest = manifest_of_build(work, settled, verified, engines, files)
    manifest.write(work)
    manifest = _compare_answers(work, settled, manifest, progress, keeper)
    manifest = replace(manifest, references=keeper.write(work, manifest))
    manifest.write(work)
    if settled.verification is not None:
        _note_engines(settled, progress)
    _assemble_repository(work, settled, manifest, progress)
    return digests


def _note_engines(settled: SettledBuild, progress: Progress) -> None:
    """Says which engines of the build the comparison has not run."""
    from iblip.serving.parity.report import engines_left_out

    if note := engines_left_out(str(settled.destination), settled.engines):
        progress.note(note)


def _export_graphs(
    directory: Path, settled: SettledBuild, progress: Progress, digests: dict[Path, str]
) -> tuple[OnnxGraph, ...]:
    """Writes the graphs; `digests` gets the sha256 of the files that are read for them."""
    from iblip.export.exporter import graphs_from_checkpoint
    from iblip.export.graph.trace_cache import TraceCache

    directory.mkdir()
    traces = settled.caches.traces
    return graphs_from_checkpoint(
        settled.checkpoint,
        settled.policy,
        directory,
        progress,
        settled.quantisations,
        file_digests=digests,
        traces=TraceCache(traces) if traces else None,
    )


def _verify_graphs(
    graphs: tuple[OnnxGraph, ...],
    settled: SettledBuild,
    progress: Progress,
    keeper: ReferenceKeeper,
) -> tuple[VerifiedGraph, ...]:
    if settled.verification is None:
        progress.note("verification is skipped (--no-verify); the manifest says so")
        return tuple(VerifiedGraph.without_proof(graph, reason="--no-verify") for graph in graphs)
    from iblip.export.verification.graphs import verify_graphs

    return verify_graphs(graphs, settled.checkpoint, progress, keeper.cases())


def _compare_answers(
    work: Path,
    settled: SettledBuild,
    manifest: Manifest,
    progress: Progress,
    keeper: ReferenceKeeper,
) -> Manifest:
    """Compares the texts of the build in `work` with transformers', and adds that to its manifest.

    Raises:
        VerificationError: too many differ.
    """
    if (asked := settled.verification) is None:
        return manifest
    from iblip.engines.evaluation.texts import examples_to_ask, text_reports

    examples = examples_to_ask(settled.checkpoint, asked.examples, asked.limit)
    recorder = keeper.answers(examples, progress)
    report = text_reports(work, settled.checkpoint, progress, examples, watch=recorder)["text"]
    _check_answers(report)
    return replace(manifest, verification={**manifest.verification, "text": report})


def _check_answers(report: Mapping[str, Any]) -> None:
    if not report.get("passed", True):
        cases = "\n  ".join(str(case) for case in report["different"][:3])
        raise VerificationError(
            f"the build says the same as transformers on {report['same_text']} of"
            f" {report['examples']} examples; expected {report['wanted_agreement']:.0%}. For"
            f" instance, it differs on:\n  {cases}"
        )


def _assemble_repository(
    work: Path, settled: SettledBuild, manifest: Manifest, progress: Progress
) -> None:
    from iblip.serving.repository.assembling import repository_from_engines

    with progress.stage("assemble the Triton repository"):
        repository_from_engines(
            work, manifest, max_batch=settled.limits.max_batch, backend=settled.backend
        )
