"""Plans of the graphs of a build that exists: each is built, or has the reason why it cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from iblip.engines.cache.cached_plan import cached_plan
from iblip.engines.cache.store import EngineCache
from iblip.engines.tensorrt.builder import Plan
from iblip.engines.tensorrt.libraries import Library
from iblip.engines.tensorrt.options import PlanOptions
from iblip.engines.tensorrt.profile import Profile
from iblip.engines.tensorrt.profile_sizes import ProfileOptions, decoder_profiles
from iblip.export.artifact.manifest import Manifest
from iblip.export.artifact.verified_graph import OnnxGraph, VerifiedGraph, proofs_of_build
from iblip.export.errors import EngineError, OptionError
from iblip.export.progress import Progress

NOT_FOR_TENSORRT = "language_model/batched_decoder"
"""The graph of ONNX Runtime's own operators: left out unless it is asked for by name."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one graph.

    Attributes:
        graph: that was to be a plan.
        plan: what was built; `None` where it could not be.
        reason: why not; `None` where it was.
    """

    graph: OnnxGraph
    plan: Plan | None = None
    reason: str | None = None

    @property
    def title(self) -> str:
        """`component/graph`."""
        return f"{self.graph.component}/{self.graph.name}"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready: `graph`, `precision`, then `path` and `details`, or `reason`."""
        found: dict[str, Any] = {"graph": self.title, "precision": self.graph.precision}
        if self.plan is None:
            return {**found, "reason": self.reason}
        return {**found, "path": str(self.plan.path), "details": dict(self.plan.details)}


@dataclass(frozen=True, kw_only=True)
class PlanBuild:
    """How the plans of a build are made.

    Attributes:
        library: that builds them.
        options: targets, flags and workspace.
        sizes: of vision encoder and Q-Former. The language model's are those of the manifest.
        cache: of plans; `None` builds all of them.
    """

    library: Library
    options: PlanOptions
    sizes: ProfileOptions
    cache: EngineCache | None = None

    def profiles(self, graph: OnnxGraph, manifest: Manifest) -> Sequence[Profile]:
        """Of one graph of the build that this manifest is of."""
        if graph.component != "language_model":
            return self.sizes.of_contract(graph.contract)
        limits = manifest.limits
        return decoder_profiles(graph.contract, slots=limits.slots, positions=limits.max_length)


def plans_of_build(
    directory: Path,
    manifest: Manifest,
    output: Path,
    how: PlanBuild,
    progress: Progress,
    graphs: Sequence[str] = (),
) -> Iterator[Outcome]:
    """Builds `output/<component>/<graph>.plan` of the graphs of a build, one after the other.

    Args:
        directory: of the build.
        manifest: of the same build.
        output: made where it is missing.
        how: library, options, sizes, cache.
        progress: has a stage for each.
        graphs: `component/graph` of each that is wanted; none is all that TensorRT is meant for.

    Raises:
        OptionError: there is no such graph, or the library cannot build so (before any is built).
    """
    how.library.check(how.options)
    for proof in _chosen(proofs_of_build(directory, manifest), graphs):
        graph = proof.graph
        path = output / graph.component / f"{graph.name}.plan"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            plan = cached_plan(
                proof,
                path,
                cache=how.cache,
                library=how.library,
                profiles=how.profiles(graph, manifest),
                options=how.options,
                build=str(directory.absolute()),
                progress=progress,
            )
        except EngineError as error:
            yield Outcome(graph=graph, reason=str(error))
        else:
            yield Outcome(graph=graph, plan=plan)


def _chosen(proofs: Sequence[VerifiedGraph], wanted: Sequence[str]) -> list[VerifiedGraph]:
    by_title = {f"{proof.graph.component}/{proof.graph.name}": proof for proof in proofs}
    for title in wanted:
        if title not in by_title:
            near = get_close_matches(title, by_title, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise OptionError(
                f"--graph {title}: the build has no such graph.{hint} Graphs: {', '.join(by_title)}"
            )
    titles = wanted or [title for title in by_title if title != NOT_FOR_TENSORRT]
    return [by_title[title] for title in titles]
