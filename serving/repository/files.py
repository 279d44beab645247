"""The files that serving a build opens, and whether each is there and what it should be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from iblip.engines.text.tokens import load_tokenizer
from iblip.export.artifact.manifest import ComponentRecord, Manifest
from iblip.export.errors import BuildDirectoryError
from iblip.export.messages import LONGEST, listed, printable
from iblip.serving.repository.onnx_files import onnx_faults


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


def files_of_texts(manifest: Manifest) -> Mapping[str, int | None]:
    """The files of its tokenizers."""
    texts = (manifest.text.tokenizer, manifest.text.qformer_tokenizer)
    return {path: None for path in texts if path is not None}


def files_of_build(manifest: Manifest) -> Mapping[str, int | None]:
    """The files that serving the whole build opens, with its tokenizers."""
    files = dict(files_of_texts(manifest))
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
        elif check := CHECKS.get(file.name) or CHECKS.get(file.suffix):
            for fault in check(file):
                yield path, fault


def _tokenizer_faults(path: Path) -> Iterator[str]:
    try:
        load_tokenizer(path)
    except ImportError:  # a server elsewhere has the library
        return
    except BuildDirectoryError as error:
        yield printable(str(error.__cause__))[:LONGEST] + ": it is no tokenizer"


CHECKS: Mapping[str, Callable[[Path], Iterator[str]]] = {
    ".onnx": onnx_faults,
    "tokenizer.json": _tokenizer_faults,
    "qformer_tokenizer.json": _tokenizer_faults,
}
"""What is looked at in a file that is there, by its name or the end of it."""


def check_files(directory: Path, manifest: Manifest) -> None:
    """Refuses a build of which a file is missing or damaged, before a server is started.

    Raises:
        BuildDirectoryError: naming each file.
    """
    faulty = [f"{path}: {fault}" for path, fault in faults(directory, files_of_build(manifest))]
    if faulty:
        raise BuildDirectoryError(
            f"{directory} cannot be served: {listed(faulty)}\nCopy the whole build again, with its "
            "links, or rebuild it."
        )
