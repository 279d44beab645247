"""The versions that this project is tested with, as `constraints.txt` pins them."""

from __future__ import annotations

from pathlib import Path

from packaging.requirements import Requirement

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


def _read() -> dict[str, str]:
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        one.name: str(one.specifier).removeprefix("==")
        for one in requirements
        if one.marker is None or one.marker.evaluate()
    }


PINS = _read()
"""Version by package, for this Python."""
