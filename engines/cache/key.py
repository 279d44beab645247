"""The inputs that decide a plan, and the cache key that follows from them."""

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
"""The version of what `engines.tensorrt.builder` makes of the same inputs. Raise it with every
change there that results in another plan, or that refuses a plan that was built before."""

KEY_LENGTH = 64
"""Hexadecimal digits of a key."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def _machine() -> str:
    return f"{sys.platform}-{platform.machine()}"


@dataclass(frozen=True, kw_only=True)
class PlanInputs:
    """Everything that decides a plan. Equal inputs result in interchangeable plans.

    It leaves out where graph and plan lie, what the component is called, and whether the graph was
    verified: none of these changes what is built. Its fields are the record's on disk, and the key
    is their digest.

    Attributes:
        graph: the digest of the graph, its weights included
            (`export.graph.digest.graph_digest`).
        precision: the precision that the plan is checked for, a key of `export.precision.DTYPES`.
        library: a key of `engines.tensorrt.libraries.SOURCES`.
        version: of that library.
        targets: GPU families such as `sm89`, in alphabetical order; empty is this machine's GPU.
        device: the GPU of this machine if there are no targets: `name`, `memory` in bytes,
            `capability` and `cuda` (the version that the driver runs); else `None`.
        settings: the other settings of the builder, JSON-ready: profiles, flags, workspace.
        machine: operating system and processor, which a plan is bound to as well.
        builder: `BUILDER` at the time of the build.

    Raises:
        OptionError: the digest is not a sha256, or there are both targets and a device, or neither.
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
                f"a graph of digest {self.graph!r} cannot be told from others; expected a sha256"
            )
        if bool(self.targets) == (self.device is not None):
            raise OptionError(
                f"a plan for targets {list(self.targets)} and device {self.device}; expected "
                "exactly one of the two"
            )

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "targets": list(self.targets)}

    @property
    def key(self) -> str:
        """sha256 of the inputs, in hexadecimal."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def plan_inputs_from_graph(
    graph: OnnxGraph, library: Library, options: PlanOptions, profiles: Sequence[Profile]
) -> PlanInputs:
    """The inputs of a graph's plan.

    Args:
        graph: the graph that the plan is built from.
        library: the library that builds it. Its module is not called.
        options: targets, flags, workspace.
        profiles: in the plan's order.

    Raises:
        EngineError: there are no targets, and no GPU here.
    """
    settings = options.to_json()
    targets = tuple(sorted(settings.pop("targets")))
    return PlanInputs(
        graph=graph.digest,
        precision=graph.precision,
        library=library.kind,
        version=library.version,
        targets=targets,
        device=None if targets else this_gpu(),
        settings={**settings, "profiles": [profile.to_json() for profile in profiles]},
    )


def this_gpu() -> dict[str, Any]:
    """The first GPU of this machine, which is the one that TensorRT builds on.

    Raises:
        EngineError: this machine has no NVIDIA GPU.
    """
    driver = find_driver()
    if driver is None or not driver.gpus:
        raise EngineError("there is no NVIDIA GPU to build for here. Name one with --target.")
    return {**asdict(driver.gpus[0]), "cuda": driver.cuda}
