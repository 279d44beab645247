"""A graph on disk, and the proof that it computes what the checkpoint does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from iblip.export.artifact.contract import Contract
from iblip.export.artifact.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class OnnxGraph:
    """One written ONNX graph. Nothing is known yet of its numbers.

    Attributes:
        component: `vision_encoder`, `qformer` or `language_model`.
        name: of the graph within its component (`model`, `embed_tokens`, `encoder`, `decoder`).
        path: of the `.onnx` file.
        weights: every file that its initializers lie in, all in the graph's own directory.
        precision: a key of `export.precision.DTYPES`.
        digest: sha256 over every weight's own sha256 and the graph's bytes, in hexadecimal
            (`export.graph.digest.graph_digest`).
        contract: its inputs and outputs.
        quantisation: how its component's weights were quantised and what was measured, JSON-ready;
            empty where they were not.
    """

    component: str
    name: str
    path: Path
    weights: tuple[Path, ...]
    precision: str
    digest: str
    contract: Contract
    quantisation: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class VerifiedGraph:
    """A graph whose outputs have been compared with the reference: what an engine is built from.

    Attributes:
        graph: what was compared.
        figures: what the comparison found, JSON-ready; empty where it was skipped.
        skipped: why nothing was compared, where the caller chose so; `None` otherwise.
    """

    graph: OnnxGraph
    figures: Mapping[str, Any] = field(default_factory=dict)
    skipped: str | None = None

    @classmethod
    def without_proof(cls, graph: OnnxGraph, *, reason: str) -> Self:
        """Passes a graph on unproven, on the caller's word; the manifest repeats the reason."""
        return cls(graph=graph, skipped=reason)


def graphs_of_build(directory: Path, manifest: Manifest) -> list[OnnxGraph]:
    """Every graph of the build in `directory`, whose manifest this is."""
    return [
        OnnxGraph(
            component=component,
            name=name,
            path=directory / graph.path,
            weights=tuple(directory / path for path in graph.weights),
            precision=record.precision,
            digest=graph.digest,
            contract=graph.contract,
            quantisation=record.quantisation,
        )
        for component, record in manifest.components.items()
        for name, graph in record.graphs.items()
    ]


def proofs_of_build(directory: Path, manifest: Manifest) -> list[VerifiedGraph]:
    """The same, each with what the build's own verification found of it."""
    figures, skipped = manifest.verification.get("graphs", {}), manifest.verification.get("skipped")
    return [
        VerifiedGraph(
            graph=graph, figures=figures.get(f"{graph.component}/{graph.name}", {}), skipped=skipped
        )
        for graph in graphs_of_build(directory, manifest)
    ]
