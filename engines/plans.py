"""Builds plans of an existing build's graphs: each is built, or the reason why not is reported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from iblip.export.messages import did_you_mean
from iblip.export.progress import Progress

NOT_FOR_TENSORRT = "language_model/batched_decoder"
"""The graph of ONNX Runtime's own operators: left out unless it is requested by name."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome for one graph.

    Attributes:
        graph: the graph.
        plan: its plan; `None` if it could not be built.
        reason: why it could not be built; `None` if it was.
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
        outcome: dict[str, Any] = {"graph": self.title, "precision": self.graph.precision}
        if self.plan is None:
            return {**outcome, "reason": self.reason}
        return {**outcome, "path": str(self.plan.path), "details": dict(self.plan.details)}


@dataclass(frozen=True, kw_only=True)
class PlanBuild:
    """How the plans of a build are made.

    Attributes:
        library: the library that builds them.
        options: targets, flags and workspace.
        sizes: of vision encoder and Q-Former. The language model's sizes are the manifest's.
        cache: where plans are taken from and kept; `None` builds all of them.
    """

    library: Library
    options: PlanOptions
    sizes: ProfileOptions
    cache: EngineCache | None = None

    def profiles(self, graph: OnnxGraph, manifest: Manifest) -> Sequence[Profile]:
        """The optimisation profiles of one graph of the manifest's build."""
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
    """Builds `output/<component>/<graph>.plan` for the graphs of a build, one after another.

    Args:
        directory: of the build.
        manifest: of the same build.
        output: created if it does not exist.
        how: library, options, sizes, cache.
        progress: gets a stage for each graph.
        graphs: `component/graph` of each graph to build; empty is every graph meant for TensorRT.

    Raises:
        OptionError: the build has no such graph, or the library does not support the options. This
            is checked before anything is built.
    """
    how.library.check(how.options)
    for proof in _choose(proofs_of_build(directory, manifest), graphs):
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


def _choose(proofs: Sequence[VerifiedGraph], requested: Sequence[str]) -> list[VerifiedGraph]:
    by_title = {f"{proof.graph.component}/{proof.graph.name}": proof for proof in proofs}
    for title in requested:
        if title not in by_title:
            hint = did_you_mean(title, by_title)
            raise OptionError(
                f"--graph {title}: the build has no such graph.{hint} Graphs: {', '.join(by_title)}"
            )
    titles = requested or [title for title in by_title if title != NOT_FOR_TENSORRT]
    return [by_title[title] for title in titles]
