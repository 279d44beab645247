"""What made something: versions of the libraries, and a digest of this project's own code."""

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
"""Distributions that a build follows from."""


def library_versions() -> dict[str, str]:
    """Of those of `LIBRARIES` that are installed, by name."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache
def code_digest(*packages: str) -> str:
    """sha256 over every file of some packages, in hexadecimal: another one is other code.

    Args:
        packages: importable ones of this project (`export`); they are not imported.
    """
    digest = hashlib.sha256()
    for package in packages:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        for place in spec.submodule_search_locations or ():
            for path in sorted(_files(Path(place))):
                content = path.read_bytes()
                name = f"{package}/{path.relative_to(place).as_posix()}"
                digest.update(f"{name}\0{len(content)}\0".encode())
                digest.update(content)
    return digest.hexdigest()


def _files(package: Path) -> Iterable[Path]:
    return (
        path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )
