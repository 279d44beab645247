"""`export verify`: a build against transformers, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.digest import check_digests
from export.errors import CheckpointError
from export.examples import EXAMPLES, read_examples
from export.graphs import OnnxGraph
from export.manifest import Manifest
from export.progress import Progress
from export.source import ModelSource, checkpoint_from_source


def source_of_build(
    directory: Path,
    model: str | None = None,
    revision: str | None = None,
    parts: Mapping[str, Path] | None = None,
) -> ModelSource:
    """What the build in `directory` was made from, or where that is now.

    Args:
        directory: of the build.
        model, revision: instead of the manifest's.
        parts: instead of those of the same names.

    Raises:
        BuildDirectoryError: the directory is not a build.
    """
    source = ModelSource.from_json(Manifest.read(directory).source)
    if model is not None:
        source = replace(source, model=model, revision=None, parts={})
    return replace(
        source,
        revision=revision or source.revision,
        parts={**source.parts, **(parts or {})},
    )


def verify_build(
    directory: Path,
    progress: Progress,
    *,
    source: ModelSource | None = None,
    examples: Path | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Compares digests, every graph, then answers: greedy ones, and those of a beam search.

    Args:
        directory: of the build.
        progress: told of each stage.
        source: of the checkpoint; `None` is `source_of_build`.
        examples: directory with `examples.jsonl`; `None` is the checkpoint's own `examples`.
        limit: ask only so many of them.

    Returns:
        `{"build", "precision", "synthetic", "passed", "graphs": {title: figures}, "text": report,
        "beams": report}`; without examples, only `"text": {"skipped": why}`.

    Raises:
        BuildDirectoryError: the directory is not a build, or its files are not what it says.
        CheckpointError: the checkpoint is missing, or is not the one that was built.
    """
    from export.verification.comparison import figures
    from export.verification.graphs import compare_graphs

    manifest = Manifest.read(directory)
    checkpoint = checkpoint_from_source(source or source_of_build(directory), progress)
    if checkpoint.digests() != manifest.source["files"]:
        raise CheckpointError(
            f"{checkpoint.directory} is not what {directory} was built from: its files have other"
            " digests. Give the right one with --model, or build again."
        )
    with progress.stage("check digests"):
        check_digests(directory, manifest)
    compared = compare_graphs(_graphs(directory, manifest), checkpoint, progress)
    graphs = {title: figures(comparisons) for title, comparisons in compared.items()}
    texts = text_reports(
        directory, checkpoint, progress, examples=examples, limit=limit, ways=("text", "beams")
    )
    passed = all(found.get("passed", True) for found in (*graphs.values(), *texts.values()))
    return {
        "build": str(directory),
        "precision": dict(manifest.precision),
        "synthetic": manifest.synthetic,
        "passed": passed,
        "graphs": graphs,
        **texts,
    }


def text_reports(
    directory: Path,
    checkpoint: Any,
    progress: Progress,
    *,
    examples: Path | None,
    limit: int | None,
    ways: Sequence[str] = ("text",),
) -> dict[str, dict[str, Any]]:
    """Answers against transformers', JSON-ready; `{"text": {"skipped": why}}` without examples.

    Args:
        directory: of the build.
        checkpoint: what it was built from.
        progress: told of each answer.
        examples, limit: as in `verify_build`.
        ways: keys of `engines.verification.WAYS`: `text` is greedy.

    Raises:
        InputError: `examples` holds none.
    """
    from engines.verification import verify_texts

    source = examples or checkpoint.directory / "examples"
    if examples is None and not (source / EXAMPLES).exists():
        reason = f"the checkpoint has no examples/{EXAMPLES}, and --examples names none"
        progress.note(f"answers are not compared: {reason}")
        return {"text": {"skipped": reason}}
    found = verify_texts(directory, checkpoint, read_examples(source, limit), progress, ways)
    for report in found.values():
        progress.note(f"same text as transformers on {report.same} of {report.examples} examples")
    return {way: report.to_json() for way, report in found.items()}


def _graphs(directory: Path, manifest: Manifest) -> list[OnnxGraph]:
    return [
        OnnxGraph(
            component=component,
            name=name,
            path=directory / graph.path,
            weights=tuple(directory / path for path in graph.weights),
            precision=record.precision,
            digest=graph.digest,
            contract=graph.contract,
        )
        for component, record in manifest.components.items()
        for name, graph in record.graphs.items()
    ]
