"""What decides a plan, and the key that follows from it."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from iblip.engines.hardware.nvidia import find_driver
from iblip.engines.tensorrt.libraries import Library
from iblip.engines.tensorrt.options import PlanOptions
from iblip.engines.tensorrt.profile import Profile
from iblip.export.artifact.verified_graph import OnnxGraph
from iblip.export.errors import EngineError, OptionError

BUILDER = 2
"""The number of what `engines.tensorrt.builder` makes of the same recipe. Raise it with every
change there that gives another plan, or that refuses one which it has given before."""

KEY_LENGTH = 64
"""Hexadecimal digits of a key."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def _machine() -> str:
    return f"{sys.platform}-{platform.machine()}"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a plan. Equal recipes give plans that can stand for each other.

    Not in it: where graph and plan lie, what the component is called, and whether the graph was
    verified. They do not change what is built.

    Attributes:
        graph: the digest of the graph, its weights included
            (`export.graph.digest.graph_digest`).
        precision: that the plan is checked for, a key of `export.precision.DTYPES`.
        library: a key of `engines.tensorrt.libraries.SOURCES`.
        version: of that library.
        targets: GPU families such as `sm89`, in alphabetical order; empty is this machine's GPU.
        device: the GPU of this machine where it has no targets: `name`, `memory` in bytes,
            `capability` and `cuda` (that the driver runs); else `None`.
        settings: what else the builder is told, JSON-ready: profiles, flags, workspace.
        machine: operating system and processor, which a plan is bound to as well.
        builder: `BUILDER` when it was made.

    Raises:
        OptionError: the digest is none, or there are both targets and a device, or neither.
    """

    graph: str
    precision: str
    library: str
    version: str
    targets: tuple[str, ...]
    device: Mapping[str, Any] | None
    settings: Mapping[str, Any]
    machine: str = field(default_factory=_machine)
    builder: int = BUILDER

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.graph):
            raise OptionError(
                f"a graph of digest {self.graph!r} cannot be told from others; wanted a sha256"
            )
        if bool(self.targets) == (self.device is not None):
            raise OptionError(
                f"a plan for targets {list(self.targets)} and device {self.device}; wanted one of "
                "the two"
            )

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "targets": list(self.targets)}

    @property
    def key(self) -> str:
        """sha256 of the recipe, in hexadecimal."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def recipe_from_graph(
    graph: OnnxGraph, library: Library, options: PlanOptions, profiles: Sequence[Profile]
) -> Recipe:
    """The recipe of a graph's plan.

    Args:
        graph: what the plan is of.
        library: that builds it. Its module is not touched.
        options: targets, flags, workspace.
        profiles: in the order in which the plan has them.

    Raises:
        EngineError: there are no targets, and no GPU here.
    """
    settings = options.to_json()
    targets = tuple(sorted(settings.pop("targets")))
    return Recipe(
        graph=graph.digest,
        precision=graph.precision,
        library=library.kind,
        version=library.version,
        targets=targets,
        device=None if targets else this_gpu(),
        settings={**settings, "profiles": [profile.to_json() for profile in profiles]},
    )


def this_gpu() -> dict[str, Any]:
    """The first GPU of this machine, which is the one that TensorRT builds on."""
    driver = find_driver()
    if driver is None or not driver.gpus:
        raise EngineError("there is no NVIDIA GPU to build for here. Name one with --target.")
    return {**asdict(driver.gpus[0]), "cuda": driver.cuda}
