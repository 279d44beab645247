"""The tools that a result depends on: library versions, and a digest of this project's code."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable
from functools import cache
from pathlib import Path

LIBRARIES = (
    "iblip",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "numpy",
)
"""Distributions that a build depends on."""


def library_versions(libraries: Iterable[str] = LIBRARIES) -> dict[str, str]:
    """Returns the versions of those distributions that are installed, by name."""
    versions = {}
    for name in libraries:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@cache
def code_digest(*modules: str) -> str:
    """Returns the sha256 over the files of modules and packages, in hexadecimal.

    Args:
        modules: importable names in this project (`iblip.export`); they are not imported.
    """
    digest = hashlib.sha256()
    for module in modules:
        spec = importlib.util.find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        for place in map(Path, spec.submodule_search_locations or (spec.origin,)):
            for path in sorted(_files(place)):
                content = path.read_bytes()
                name = f"{module}/{path.relative_to(place).as_posix()}"
                digest.update(f"{name}\0{len(content)}\0".encode())
                digest.update(content)
    return digest.hexdigest()


def _files(place: Path) -> Iterable[Path]:
    paths = (place,) if place.is_file() else place.rglob("*")
    return (path for path in paths if path.is_file() and "__pycache__" not in path.parts)
