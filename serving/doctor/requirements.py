"""What this project's own metadata says that each job needs, against what is installed."""

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
    """A package that a job needs.

    Attributes:
        name: in lower case, with hyphens.
        bounds: such as `>=1.26,<3`; empty where any version does.
    """

    name: str
    bounds: str

    def allows(self, version: str) -> bool:
        """Whether a version is within the bounds; suffixes such as `+cpu` do not count."""
        found = numbers(version)
        return all(
            _SIGNS[bound["sign"]](found, numbers(bound["version"]))
            for bound in _BOUND.finditer(self.bounds)
        )

    def __str__(self) -> str:
        return f"{self.name}{self.bounds}"


def normal(name: str) -> str:
    """A package's name in the one way of spelling it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """Every installed package of this Python, by normal name, and its version."""
    found = {one.metadata["Name"]: one for one in metadata.distributions()}
    # What is left of a package that was not removed whole has no name.
    return {normal(name): one.version for name, one in found.items() if name}


def requirements() -> dict[str, tuple[Requirement, ...]]:
    """This project's extras, and what each needs; those of `""` are needed for everything.

    Empty where the project is not installed, but read from its folder.
    """
    try:
        lines = metadata.requires(PROJECT) or []
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, list[Requirement]] = {"": []}
    for line in lines:
        parts = _REQUIREMENT.match(line)
        if parts is None or normal(parts["name"]) == PROJECT:
            continue  # an extra that includes another says so of this project itself
        extra = _EXTRA.search(parts["marker"])
        one = Requirement(name=normal(parts["name"]), bounds=parts["bounds"].strip(" ()"))
        found.setdefault(extra["extra"] if extra else "", []).append(one)
    return {extra: tuple(many) for extra, many in found.items()}
