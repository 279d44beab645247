"""`export verify`: a build against transformers, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping
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
    """Compares digests, every graph, then greedy answers.

    Args:
        directory: of the build.
        progress: told of each stage.
        source: of the checkpoint; `None` is `source_of_build`.
        examples: directory with `examples.jsonl`; `None` is the checkpoint's own `examples`.
        limit: ask only so many of them.

    Returns:
        `{"build", "precision", "passed", "graphs": {title: figures}, "text": report}`.

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
    text = text_report(directory, checkpoint, progress, examples=examples, limit=limit)
    passed = all(found["passed"] for found in graphs.values()) and text.get("passed", True)
    return {
        "build": str(directory),
        "precision": dict(manifest.precision),
        "passed": passed,
        "graphs": graphs,
        "text": text,
    }


def text_report(
    directory: Path,
    checkpoint: Any,
    progress: Progress,
    *,
    examples: Path | None,
    limit: int | None,
) -> dict[str, Any]:
    """Greedy answers against transformers', JSON-ready; `{"skipped": why}` without examples.

    Raises:
        InputError: `examples` holds none.
    """
    from engines.verification import verify_text

    source = examples or checkpoint.directory / "examples"
    if examples is None and not (source / EXAMPLES).exists():
        reason = f"the checkpoint has no examples/{EXAMPLES}, and --examples names none"
        progress.note(f"answers are not compared: {reason}")
        return {"skipped": reason}
    report = verify_text(directory, checkpoint, read_examples(source, limit), progress)
    progress.note(f"same text as transformers on {report.same} of {report.examples} examples")
    return report.to_json()


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
