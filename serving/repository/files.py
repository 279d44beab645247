"""The files that serving a build opens, and whether they exist with their original size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from iblip.export.artifact.manifest import ComponentRecord, Manifest


def files_of_component(record: ComponentRecord) -> Mapping[str, int | None]:
    """The files that serving a component opens: its engine, and weights if its engine is a graph.

    Returns:
        path relative to the build, and its size in bytes where the manifest has it (for plans).
    """
    engine = record.engine
    size = engine.details.get("bytes") if len(engine.files) == 1 else None
    files: dict[str, int | None] = dict.fromkeys(engine.files.values(), size)
    for graph in record.graphs.values():
        if graph.path in files:
            files |= dict.fromkeys(graph.weights)
    return files


def files_of_build(manifest: Manifest) -> Mapping[str, int | None]:
    """The files that serving the whole build opens, with its tokenizers."""
    texts = (manifest.text.tokenizer, manifest.text.qformer_tokenizer)
    files: dict[str, int | None] = {path: None for path in texts if path is not None}
    for record in manifest.components.values():
        files |= files_of_component(record)
    return files


def faults(directory: Path, files: Mapping[str, int | None]) -> Iterator[tuple[str, str]]:
    """The files that are missing or have another size, and what is wrong, in words.

    Args:
        directory: of the build.
        files: see `files_of_component`.
    """
    for path, size in files.items():
        file = directory / path
        if not file.is_file():
            yield path, "missing"
        elif size is not None and (actual := file.stat().st_size) != size:
            yield path, f"{actual} bytes instead of {size}"
