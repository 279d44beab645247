"""What the real parser makes of exported graphs, held against the precision asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from iblip.engines.tensorrt.collection import no_collection
from iblip.engines.tensorrt.job import Job
from iblip.engines.tensorrt.libraries import find_library
from iblip.engines.tensorrt.readback import Layer, matrix_layers, precision_fault
from iblip.export.artifact.manifest import Manifest
from iblip.export.artifact.verified_graph import OnnxGraph, graphs_of_build
from iblip.export.errors import EngineError

pytest.importorskip("tensorrt_rtx_bindings")

Read = Callable[..., OnnxGraph]


@pytest.fixture(scope="module")
def graph_of(random_build: Callable[..., Path]) -> Read:
    """`graph_of("t5", "encoder", "fp16")`: of a random checkpoint's language model."""

    @cache
    def read(kind: str, name: str, precision: str) -> OnnxGraph:
        build = random_build(kind, precision)
        graphs = graphs_of_build(build, Manifest.read(build))
        return next(g for g in graphs if (g.component, g.name) == ("language_model", name))

    return read


@no_collection()
def _layers(graph: OnnxGraph) -> list[Layer]:
    return Job(library=find_library("tensorrt-rtx"), graph=graph).parse()


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_t5_keeps_its_islands_in_float32(graph_of: Read, name: str) -> None:
    layers = _layers(graph_of("t5", name, "fp16"))
    wide = [layer for layer in layers if layer.dtype == "FLOAT" and layer.kind == "MATRIX_MULTIPLY"]
    assert {layer.path.rpartition(".")[2] for layer in wide} == {"wo"}
    assert {layer.dtype for layer in layers if layer.kind == "SOFTMAX"} == {"FLOAT"}
    assert matrix_layers(layers)["HALF"] > len(wide) > 0


@pytest.mark.parametrize(
    ("kind", "name"),
    [("t5", "decoder"), ("llama", "decoder"), ("opt", "decoder"), ("opt", "embed_tokens")],
)
def test_a_graph_in_float32_that_was_asked_for_as_fp16_is_refused_with_its_layers(
    graph_of: Read, kind: str, name: str
) -> None:
    graph = graph_of(kind, name, "fp32")
    assert {layer.dtype for layer in _layers(graph)} == {"FLOAT"}
    with pytest.raises(EngineError, match="asked for in fp16") as caught:
        _layers(replace(graph, precision="fp16"))
    message = str(caught.value)
    first = {"t5": "SelfAttention.q/MatMul", "llama": "q_proj/MatMul", "opt": "q_proj/MatMul"}[kind]
    assert ("/Gather" if name == "embed_tokens" else first) + " (FLOAT, expected HALF)" in message
    assert "wo/MatMul" not in message


@pytest.mark.parametrize(
    ("layer", "wanted"),
    [
        (Layer(name="a.wo/MatMul", kind="MATRIX_MULTIPLY", dtype="HALF"), "FLOAT"),
        (Layer(name="a/Softmax", kind="SOFTMAX", dtype="HALF"), "FLOAT"),
        (Layer(name="a/Add", kind="ELEMENTWISE", dtype="BF16"), "HALF or FLOAT"),
    ],
)
def test_an_island_in_16_bits_is_refused(graph_of: Read, layer: Layer, wanted: str) -> None:
    graph = graph_of("t5", "encoder", "fp16")
    right = Layer(name="a.q/MatMul", kind="MATRIX_MULTIPLY", dtype="HALF")
    assert precision_fault([right], graph) is None
    fault = precision_fault([right, layer], graph)
    assert fault is not None
    assert f"{layer.name} ({layer.dtype}, expected {wanted})" in fault
