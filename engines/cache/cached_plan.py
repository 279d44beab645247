"""A plan from a verified graph: taken from the engine cache if it is there, else built and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from iblip.engines.cache.key import PlanInputs, plan_inputs_from_graph
from iblip.engines.cache.store import SHORT, EngineCache
from iblip.engines.tensorrt.builder import Plan, plan_from_onnx
from iblip.engines.tensorrt.libraries import UNKNOWN_VERSION, Library
from iblip.engines.tensorrt.options import PlanOptions
from iblip.engines.tensorrt.profile import Profile
from iblip.export.artifact.verified_graph import VerifiedGraph
from iblip.export.progress import Progress

Build = Callable[[Path | None], Plan]
"""Builds a plan, with the timing cache in the given file, if any."""


def cached_plan(
    verified: VerifiedGraph,
    output: Path,
    *,
    cache: EngineCache | None,
    library: Library,
    profiles: Sequence[Profile],
    options: PlanOptions | None = None,
    build: str,
    progress: Progress,
) -> Plan:
    """The plan of one graph in the file `output`, which appears whole or not at all.

    If several processes ask for the same plan at once, one builds it and the others wait.

    Args:
        verified, output, library, profiles, options: as `plan_from_onnx` takes them.
        cache: where to look first, and to keep what is built; `None` always builds.
        build: the build that the plan is for, named in the cache's record.
        progress: gets a stage for building or taking the plan, and a note about waiting.

    Returns:
        The plan; its details are those of `plan_from_onnx` and, with a cache, `key` (of the cache)
        and `cached` (whether it was taken from the cache; `seconds` is then how long it once took
        to build).

    Raises:
        OptionError, EngineError: as `plan_from_onnx` does.
    """
    options = options or PlanOptions()
    library.check(options)
    title = _title(verified)
    build_plan = partial(_build, verified, output, library, profiles, options, progress)
    if library.version == UNKNOWN_VERSION:
        progress.note(f"{library.kind} does not say its version, so {title}.plan is not kept")
        cache = None
    if cache is None:
        return build_plan(None)
    inputs = plan_inputs_from_graph(verified.graph, library, options, profiles)
    note = f"another process is building {title}.plan; waiting for it"
    with cache.claim(inputs.key, waiting=partial(progress.note, note)):
        plan = _take(cache, inputs.key, verified, output, progress)
        return plan or _build_and_keep(cache, inputs, build_plan, title=title, build=build)


def _build(
    verified: VerifiedGraph,
    output: Path,
    library: Library,
    profiles: Sequence[Profile],
    options: PlanOptions,
    progress: Progress,
    timing: Path | None,
) -> Plan:
    with progress.stage(f"build {_title(verified)}.plan with {library.kind}"):
        return plan_from_onnx(
            verified, output, library=library, profiles=profiles, options=options, timing=timing
        )


def _take(
    cache: EngineCache, key: str, verified: VerifiedGraph, output: Path, progress: Progress
) -> Plan | None:
    """The plan from the cache, put at `output`; `None` if the cache has no good one."""
    if not cache.has(key):
        return None
    with progress.stage(f"take {_title(verified)}.plan from the engine cache ({key[:SHORT]})"):
        entry = cache.take(key, output)
    if entry is None:
        return None
    details = {**entry.details, "key": key, "cached": True}
    if verified.skipped is not None:  # proof belongs to this graph, not to the cache's entry
        details["unverified"] = verified.skipped
    return Plan(path=output, details=details)


def _build_and_keep(
    cache: EngineCache, inputs: PlanInputs, build_plan: Build, *, title: str, build: str
) -> Plan:
    plan = build_plan(cache.timing_cache(inputs))
    details = {name: value for name, value in plan.details.items() if name != "unverified"}
    cache.keep(inputs, plan.path, graph=title, details=details, build=build)
    return Plan(path=plan.path, details={**plan.details, "key": inputs.key, "cached": False})


def _title(verified: VerifiedGraph) -> str:
    return f"{verified.graph.component}/{verified.graph.name}"
