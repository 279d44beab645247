"""`OnnxGraph`, a graph on disk, and `VerifiedGraph`, the same with the proof that it is right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from iblip.export.artifact.contract import Contract
from iblip.export.artifact.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class OnnxGraph:
    """One written ONNX graph, which has not been verified.

    Attributes:
        component: `vision_encoder`, `qformer` or `language_model`.
        name: of the graph within its component (`model`, `embed_tokens`, `encoder`, `decoder`).
        path: of the `.onnx` file.
        weights: files with its initializers, all in the graph's own directory.
        precision: a key of `export.precision.DTYPES`.
        digest: sha256 over every weight's own sha256 and the graph's bytes, in hexadecimal
            (`export.graph.digest.graph_digest`).
        contract: its inputs and outputs.
        quantisation: how its component's weights were quantised and what was measured, JSON-ready;
            empty if they were not.
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
    """A graph whose outputs have been compared with the reference. Engines are built from these.

    Attributes:
        graph: that was compared.
        figures: results of the comparison, JSON-ready; empty if it was skipped.
        skipped: reason why it was skipped, on the caller's word; `None` if it was not.
    """

    graph: OnnxGraph
    figures: Mapping[str, Any] = field(default_factory=dict)
    skipped: str | None = None

    @classmethod
    def without_proof(cls, graph: OnnxGraph, *, reason: str) -> Self:
        """Returns an unverified graph as if it were verified; the manifest repeats the reason."""
        return cls(graph=graph, skipped=reason)


def graphs_of_build(directory: Path, manifest: Manifest) -> list[OnnxGraph]:
    """Returns every graph of the build in `directory`, whose manifest is given."""
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
    """Returns every graph of a build with the results of the build's own verification."""
    figures, skipped = manifest.verification.get("graphs", {}), manifest.verification.get("skipped")
    return [
        VerifiedGraph(
            graph=graph, figures=figures.get(f"{graph.component}/{graph.name}", {}), skipped=skipped
        )
        for graph in graphs_of_build(directory, manifest)
    ]
