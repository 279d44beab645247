"""The packages that each of this project's extras requires, and those that are installed."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata

from iblip.engines.hardware.compatibility import numbers

PROJECT = "iblip"

_REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)(\[(?P<extras>[^]]*)\])?(?P<bounds>[^;]*)(?P<marker>.*)"
)
_BOUND = re.compile(r"(?P<sign>>=|<=|==|!=|<|>)\s*(?P<version>[\w.+]+)")
_EXTRA = re.compile(r"extra\s*==\s*['\"](?P<extra>[^'\"]+)['\"]")

_SIGNS: Mapping[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """A package that an extra requires.

    Attributes:
        name: in lower case, with hyphens.
        bounds: such as `>=1.26,<3`; empty where any version will do.
    """

    name: str
    bounds: str

    def allows(self, version: str) -> bool:
        """Whether a version is within the bounds; suffixes such as `+cpu` are ignored."""
        given = numbers(version)
        return all(
            _SIGNS[bound["sign"]](given, numbers(bound["version"]))
            for bound in _BOUND.finditer(self.bounds)
        )

    def __str__(self) -> str:
        return f"{self.name}{self.bounds}"


def normalise(name: str) -> str:
    """A package's normalised name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_packages() -> dict[str, str]:
    """The version of every package installed in this Python, by normalised name."""
    packages = {package.metadata["Name"]: package for package in metadata.distributions()}
    # What remains of a package that was not removed completely has no name.
    return {normalise(name): package.version for name, package in packages.items() if name}


def read_requirements() -> dict[str, tuple[Requirement, ...]]:
    """The requirements of this project's extras, by name; `""` has those of the project itself.

    Empty where the project is not installed, but imported from its folder.
    """
    try:
        lines = metadata.requires(PROJECT) or []
    except metadata.PackageNotFoundError:
        return {}
    required: dict[str, list[Requirement]] = {"": []}
    for line in lines:
        parts = _REQUIREMENT.match(line)
        if parts is None or normalise(parts["name"]) == PROJECT:
            continue  # an extra includes another by requiring this project
        extra = _EXTRA.search(parts["marker"])
        package = Requirement(name=normalise(parts["name"]), bounds=parts["bounds"].strip(" ()"))
        required.setdefault(extra["extra"] if extra else "", []).append(package)
    return {extra: tuple(packages) for extra, packages in required.items()}
