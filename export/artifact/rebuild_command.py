"""The command that makes a build again, from what its `manifest.json` says of it.

Takes the file's JSON as it is: it is asked for builds that this version does not read.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def rebuild_command(directory: Path, data: Any) -> str:
    """`iblip build …`, with the source, the precision and the engines of a build.

    Other options are not in a manifest.

    Args:
        directory: of the build, which the command replaces.
        data: its manifest's JSON; of what is missing there, the command says nothing.
    """
    words = ["iblip", "build"]
    for flag, value in _flags(data):
        words += [flag, value]
    return shlex.join([*words, "--output", str(directory)])


def _flags(data: Any) -> Iterator[tuple[str, str]]:
    source = _mapping(data, "source")
    for key in ("model", "revision", "image_size"):
        if source.get(key) is not None:
            yield f"--{key.replace('_', '-')}", str(source[key])
    for name, path in _mapping(source, "parts").items():
        yield "--part", f"{name}={path}"
    adapters = source.get("adapters")
    for name in adapters if isinstance(adapters, list) else ():
        yield "--adapter", str(name)
    precision = _mapping(data, "precision")
    if precision:
        yield "--precision", ",".join(f"{name}={word}" for name, word in precision.items())
    components = _mapping(data, "components")
    for flag, name in (("--engine", "vision_encoder"), ("--llm-engine", "language_model")):
        kind = _mapping(_mapping(components, name), "engine").get("kind")
        if kind is not None:
            yield flag, str(kind)


def _mapping(data: Any, key: str) -> Mapping[str, Any]:
    value = data.get(key) if isinstance(data, Mapping) else None
    return value if isinstance(value, Mapping) else {}
