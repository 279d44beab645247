"""Where a build came from, and its answers against transformers'. The staged report is in
`serving.parity`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.examples import EXAMPLES, read_examples
from export.manifest import Manifest
from export.progress import Progress
from export.source import ModelSource


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
