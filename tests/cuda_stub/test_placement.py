"""Where ONNX Runtime puts every node of every served graph: products and attention on the GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from checkpoints import DEMOS
from iblip.engines.onnxruntime.assignment import ARITHMETIC
from iblip.engines.onnxruntime.probing import preload_cuda
from iblip.engines.onnxruntime.providers import CPU_PROVIDER, Placement
from iblip.engines.onnxruntime.session import load_onnxruntime, offer_providers
from iblip.export.artifact.manifest import Manifest
from iblip.export.graph import onnxruntime_values
from tests.cuda_stub.bounds import OUTSIDE, PRODUCTS

pytestmark = pytest.mark.cuda_stub

PRECISIONS = ("fp16", "bf16", "lavis")

REFERENCE = "decoder"
"""A language model's graph that verification compares with; none that is served."""

FLOATS = {1, 10, 11, 16}
"""ONNX's numbers of float32, float16, float64 and bfloat16."""


@dataclass(frozen=True)
class Opened:
    """How ONNX Runtime opened one graph on the CUDA provider."""

    on_cuda: Counter[str]
    on_cpu: Counter[str]
    memcpy: int
    cast: bool
    """Whether all of it was put into float32, because the GPU has no kernel in bfloat16."""


@pytest.fixture
def open_graph(monkeypatch, tmp_path) -> Callable[[Path], Opened]:
    """Opens a graph as a runner does, and reads what became of it."""
    ort = load_onnxruntime()
    preload_cuda(ort)

    def open_(path: Path) -> Opened:
        import onnx_ir as ir

        options, casts = ort.SessionOptions(), []
        options.log_severity_level = 3
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        with_casts = onnxruntime_values.with_casts

        def note(graph: Path) -> Any:
            casts.append(graph)
            return with_casts(graph)

        monkeypatch.setattr(onnxruntime_values, "with_casts", note)
        providers = offer_providers(ort, options, Placement(kind="onnxruntime-cuda"))
        session = onnxruntime_values.session_from_onnx(path, options, providers)
        nodes: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        for part in session.get_provider_graph_assignment_info():
            nodes[part.ep_name == CPU_PROVIDER].update(node.op_type for node in part.get_nodes())
        optimized = ir.load(options.optimized_model_filepath)
        memcpy = sum(node.op_type.startswith("Memcpy") for node in optimized.graph)
        return Opened(nodes[False], nodes[True], memcpy, bool(casts))

    return open_


def _served(build: Path) -> dict[str, Path]:
    """Each served graph of a build, by component and name."""
    components = Manifest.read(build).components
    return {
        f"{component}/{path.stem}": path
        for component in components
        for path in sorted((build / "graphs" / component).glob("*.onnx"))
        if path.stem != REFERENCE
        and "." not in path.stem  # the provider opens `*.cuda.onnx` instead
    }


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("demo", DEMOS)
def test_only_shape_arithmetic_is_left_to_the_cpu(demo, precision, cuda_build, open_graph, record):
    build, complaints = cuda_build(demo, precision), []
    architecture = Manifest.read(build).language_model.architecture
    for name, path in _served(build).items():
        opened = open_graph(path)
        bound = OUTSIDE.get(f"{name} of {architecture}") or OUTSIDE[name]
        record(
            f"{demo} {precision} {name}",
            cuda=opened.on_cuda.total(),
            cpu=(opened.on_cpu.total(), bound.on_cpu),
            memcpy=(opened.memcpy, bound.memcpy),
        )
        if not opened.on_cpu.keys() <= ARITHMETIC or PRODUCTS & opened.on_cpu.keys():
            complaints.append(f"{name} leaves {dict(opened.on_cpu)} to the CPU")
        if opened.on_cpu.total() > bound.on_cpu or opened.memcpy > bound.memcpy:
            complaints.append(f"{name} has {opened}, and the bound is {bound}")
        if not PRODUCTS & opened.on_cuda.keys() and not name.endswith("embed_tokens"):
            complaints.append(f"{name} has no product on the GPU")
    assert complaints == []


@pytest.mark.parametrize("demo", DEMOS)
def test_no_graph_in_bf16_is_computed_in_float32_throughout(demo, cuda_build, open_graph):
    cast = [
        name for name, path in _served(cuda_build(demo, "bf16")).items() if open_graph(path).cast
    ]
    assert cast == []
