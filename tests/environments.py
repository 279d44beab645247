"""Python environments with few packages, made of what is installed here."""

from __future__ import annotations

import tomllib
import venv
from importlib import metadata
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[1]


def closure(*roots: str) -> dict[str, metadata.Distribution]:
    """What these packages need, themselves too, by name; `iblip[cpu]` is one like any other."""
    found: dict[str, metadata.Distribution] = {}
    todo, seen = list(roots), set()
    while todo:
        wanted = Requirement(todo.pop())
        if str(wanted) in seen:
            continue
        seen.add(str(wanted))
        found[wanted.name] = metadata.distribution(wanted.name)
        for line in _requirements(found[wanted.name], wanted.extras):
            needed = Requirement(line)
            extras = wanted.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in extras):
                needed.marker = None
                todo.append(str(needed))
    return found


def _requirements(distribution: metadata.Distribution, extras: set[str]) -> list[str]:
    """What a package says that it needs; this project by its sources, not as it was installed."""
    if distribution.name != "iblip":
        return distribution.requires or []
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    optional = (project["optional-dependencies"][extra] for extra in extras)
    return [*project["dependencies"], *chain.from_iterable(optional)]


def environment_with(directory: Path, *roots: str) -> Path:
    """The Python of a new virtual environment that has what `roots` need, and no more.

    Its packages are links to those that are installed here.
    """
    venv.create(directory, symlinks=True, with_pip=False)
    site = next(directory.glob("lib/python*/site-packages"))
    for distribution in closure(*roots).values():
        for first in {file.parts[0] for file in distribution.files or [] if file.parts}:
            if first not in ("..", "__pycache__") and not (site / first).exists():
                (site / first).symlink_to(Path(str(distribution.locate_file(first))))
    (site / "iblip.pth").write_text(f"{REPOSITORY}\n")
    return directory / "bin" / "python"
