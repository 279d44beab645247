"""A plan from a verified graph: from the engine cache where it has it, else built, and kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iblip.engines.cache.entry import Entry
from iblip.engines.cache.key import recipe_from_graph
from iblip.engines.cache.store import SHORT, EngineCache
from iblip.engines.tensorrt.builder import Plan, plan_from_onnx
from iblip.engines.tensorrt.libraries import UNKNOWN_VERSION, Library
from iblip.engines.tensorrt.options import PlanOptions
from iblip.engines.tensorrt.profile import Profile
from iblip.export.artifact.verified_graph import VerifiedGraph
from iblip.export.progress import Progress


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

    Of several processes that want the same plan at once, one builds it, and the others wait.

    Args:
        verified, output, library, profiles, options: as `plan_from_onnx` takes them.
        cache: where to look first, and to keep what is built; `None` always builds.
        build: for which the plan is, as the cache's record will say.
        progress: has a stage where the plan is built or taken, and is told of waiting.

    Returns:
        The plan; its details are those of `plan_from_onnx` and, with a cache, `key` (of the cache)
        and `cached` (whether it comes from there: `seconds` are then those of its making).

    Raises:
        OptionError, EngineError: as `plan_from_onnx` does.
    """
    options = options or PlanOptions()
    library.check(options)
    graph = verified.graph
    name = f"{graph.component}/{graph.name}"

    def make(timing: Path | None = None) -> Plan:
        with progress.stage(f"build {name}.plan with {library.kind}"):
            return plan_from_onnx(
                verified,
                output,
                library=library,
                profiles=profiles,
                options=options,
                timing=timing,
            )

    def waiting() -> None:
        progress.note(f"another process is building {name}.plan; waiting for it")

    if library.version == UNKNOWN_VERSION:
        progress.note(f"{library.kind} does not say its version, so {name}.plan is not kept")
        cache = None
    if cache is None:
        return make()
    recipe = recipe_from_graph(graph, library, options, profiles)
    with cache.claim(recipe.key, waiting):
        if cache.has(recipe.key):
            short = recipe.key[:SHORT]
            with progress.stage(f"take {name}.plan from the engine cache ({short})"):
                entry = cache.take(recipe.key, output)
            if entry is not None:
                return Plan(path=output, details=_details(entry, verified))
        plan = make(cache.timing_cache(recipe))
        details = {key: value for key, value in plan.details.items() if key != "unverified"}
        cache.keep(recipe, output, graph=name, details=details, build=build)
    return Plan(path=output, details={**plan.details, "key": recipe.key, "cached": False})


def _details(entry: Entry, verified: VerifiedGraph) -> dict[str, Any]:
    """Of the plan, and of this graph, whose proof is no matter of the cache."""
    details = {**entry.details, "key": entry.key, "cached": True}
    return details if verified.skipped is None else {**details, "unverified": verified.skipped}
