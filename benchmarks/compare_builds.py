"""Whether two builds are the same: shows that a change of the code has not changed what it builds.

    python -m benchmarks.compare_builds BEFORE AFTER

Compares every file by its sha256, every graph by what it computes (the graph and the bytes of each
weight, read where the graph says that they lie), and the manifests field by field. Prints each
difference by its path. The exit status is 0 where there is none, and 1 where there is one.

It is for builds that run on ONNX Runtime: TensorRT's plans depend on times that their builder
measures.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click

from iblip.export.artifact.manifest import MANIFEST
from iblip.export.graph.digest import digest_from_onnx
from iblip.export.system.files import sha256

IGNORED_FILES: Mapping[str, str] = {
    MANIFEST: "compared field by field",
    "inputs.json": "digests of the code, and times and inodes of files",
    "verification/*": "the report of `iblip verify`",
    "proof/*": "the record of `iblip prove`",
    "model_repository/*/1/*.py": "code: it imports the packages by their names",
    "model_repository/*/1/__pycache__/*": "written when a build is served",
}
"""Pattern of a path in the build directory, to the reason why such files may differ."""

IGNORED_FIELDS: Mapping[str, str] = {
    "created": "a time",
    "source.model": "the checkpoint's path; its files are compared by their digests",
    "source.path": "the checkpoint's path",
    "source.parts.*": "paths of an original's files",
    "tools.*": "versions of libraries",
}
"""Pattern of a field of the manifest, its keys joined by dots, to the reason why it may differ."""

CREATED = re.compile(rb'\\"created\\": \\"[^"\\]*\\"')
"""The build's time as the ensemble's config has it for clients: JSON inside a quoted string."""

RENAMED_FIELDS: Mapping[str, str] = {}
"""Field of an older manifest to its name today. Both are whole paths, keys joined by dots."""

MISSING = "(missing)"


@click.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
def main(before: Path, after: Path) -> None:
    """Compare the build directories BEFORE and AFTER."""
    for build in (before, after):
        if not (build / MANIFEST).is_file():
            raise click.UsageError(f"{build} is not a build: it has no {MANIFEST}")
    facts_before, facts_after = facts_of_build(before), facts_of_build(after)
    differences = compare_facts(facts_before, facts_after)
    for path, (old, new) in differences.items():
        click.echo(f"{path}: {old} → {new}")
    compared = len(facts_before.keys() | facts_after.keys())
    click.echo(f"{len(differences)} of {compared} files, graphs and fields differ")
    sys.exit(bool(differences))


def compare_facts(
    before: Mapping[str, str], after: Mapping[str, str]
) -> dict[str, tuple[str, str]]:
    """The facts that differ, each with its value before and after, or `MISSING`."""
    pairs = {
        path: (before.get(path, MISSING), after.get(path, MISSING))
        for path in sorted(before.keys() | after.keys())
    }
    return {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}


def facts_of_build(build: Path) -> dict[str, str]:
    """What must be equal in two equal builds, by path: digests of files and graphs, and fields.

    Raises:
        OSError: a file is missing, such as one that a graph's weights lie in.
        ValueError: the manifest is not JSON.
    """
    facts = {}
    for path in sorted(build.rglob("*")):
        name = path.relative_to(build).as_posix()
        if path.is_file() and not _matches(name, IGNORED_FILES):
            facts[name] = _digest_of_config(path) if path.suffix == ".pbtxt" else sha256(path)
            if path.suffix == ".onnx":
                facts[f"{name}, with its weights"] = digest_from_onnx(path)
    for field, value in _fields(json.loads((build / MANIFEST).read_text(encoding="utf-8"))):
        name = RENAMED_FIELDS.get(field, field)
        if not _matches(name, IGNORED_FIELDS):
            facts[f"{MANIFEST}: {name}"] = json.dumps(value)
    return facts


def _digest_of_config(path: Path) -> str:
    return hashlib.sha256(CREATED.sub(b"", path.read_bytes())).hexdigest()


def _matches(name: str, patterns: Mapping[str, str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _fields(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a JSON value with their paths; an empty object or list is a leaf."""
    if not isinstance(value, dict | list) or not value:
        yield path, value
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _fields(inner, f"{path}.{key}" if path else str(key))


if __name__ == "__main__":
    main()
