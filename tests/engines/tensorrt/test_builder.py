"""Plans by the real TensorRT-RTX parser and builder, which need no GPU."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import parser

from iblip.engines.tensorrt.builder import plan_from_onnx
from iblip.engines.tensorrt.job import Job
from iblip.engines.tensorrt.libraries import Library, find_library
from iblip.engines.tensorrt.options import PlanOptions
from iblip.engines.tensorrt.profile import Profile, Span
from iblip.engines.tensorrt.profile_sizes import ProfileOptions
from iblip.export.artifact.contract import Contract
from iblip.export.artifact.manifest import Manifest
from iblip.export.artifact.verified_graph import OnnxGraph, VerifiedGraph
from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.components.graphs_of_checkpoint import components_from_checkpoint
from iblip.export.errors import EngineError, OptionError
from iblip.export.exporter import onnx_from_component
from iblip.export.graph.trace_cache import TraceCache
from iblip.export.precision import PrecisionPolicy
from iblip.export.progress import Silent
from iblip.export.quantisation.options import QuantisationOptions, quantisations

pytest.importorskip("tensorrt_rtx_bindings")

ADA = PlanOptions(targets=("sm89",))
FOR_ADA_AND_AMPERE = PlanOptions(targets=("SM89", "sm86"))
SIZES = ProfileOptions(max={"batch": 8, "instruction": 40})
BATCHES = Profile(axes={"batch": Span(min=1, opt=2, max=8)})
Write = Callable[..., OnnxGraph]
Prove = Callable[[OnnxGraph], VerifiedGraph]


@pytest.fixture(scope="module")
def library() -> Library:
    return find_library("tensorrt-rtx")


@pytest.mark.parametrize(("dtype", "layers"), [("float32", "FLOAT"), ("float16", "HALF")])
def test_a_plan_is_built_in_the_graphs_dtypes(
    vision_graph: Write, proven: Prove, library: Library, dtype: str, layers: str
) -> None:
    graph = vision_graph(dtype)
    output = graph.path.with_suffix(".plan")
    plan = plan_from_onnx(
        proven(graph), output, library=library, profiles=[BATCHES], options=FOR_ADA_AND_AMPERE
    )
    assert plan.path == output
    assert output.stat().st_size == plan.details["bytes"] > 10_000
    assert plan.details["targets"] == ["sm89", "sm86"]
    assert plan.details["profiles"] == [{"batch": [1, 2, 8]}]
    assert plan.details["layers"] == {layers: 6}
    assert plan.details["graph"] == graph.digest
    assert plan.details["library"] == "tensorrt-rtx"
    assert "unverified" not in plan.details
    assert {path.name for path in output.parent.iterdir()} == {
        "vision.onnx",
        "vision.plan",
        "weights.bin",
    }


@pytest.mark.parametrize(("precision", "layers"), [("fp32", "FLOAT"), ("fp16", "HALF")])
@pytest.mark.parametrize("component", ["vision_encoder", "qformer"])
def test_exported_components_become_plans(
    random_build: Callable[..., Path],
    tmp_path: Path,
    proven: Prove,
    library: Library,
    component: str,
    precision: str,
    layers: str,
) -> None:
    build = random_build("llama", precision)
    record = Manifest.read(build).components[component].graphs["model"]
    graph = OnnxGraph(
        component=component,
        name="model",
        path=build / record.path,
        weights=tuple(build / path for path in record.weights),
        precision=precision,
        digest=record.digest,
        contract=record.contract,
    )
    plan = plan_from_onnx(
        proven(graph),
        tmp_path / "model.plan",
        library=library,
        profiles=SIZES.of_contract(record.contract),
        options=ADA,
    )
    assert set(plan.details["layers"]) == {layers}
    assert plan.details["profiles"][0]["batch"] == [1, 2, 8]
    assert plan.path.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("precision", "layers"),
    [
        ("bf16", {"BF16"}),
        ("lavis", {"HALF"}),
        ("int8", {"INT8", "FLOAT"}),
        ("int8-fp16", {"INT8", "HALF"}),
        ("fp8", {"FP8", "HALF"}),
    ],
)
def test_narrow_and_calibrated_graphs_become_plans(
    checkpoints: Path,
    traces: TraceCache,
    tmp_path: Path,
    library: Library,
    precision: str,
    layers: set[str],
) -> None:
    checkpoint = checkpoint_from_directory(checkpoints / "instructblip-demo-vicuna")
    policy = PrecisionPolicy.parse(f"vision_encoder={precision}")
    component = components_from_checkpoint(checkpoint, policy)[0]
    options = QuantisationOptions(int8="static" if precision == "int8" else None)
    graph = onnx_from_component(
        component,
        checkpoint,
        tmp_path,
        Silent(),
        quantisations(policy, options).get("vision_encoder"),
        traces=traces,
    )
    plan = plan_from_onnx(
        VerifiedGraph.without_proof(graph, reason="the plan alone is looked at"),
        tmp_path / "model.plan",
        library=library,
        profiles=[BATCHES],
        options=ADA,
    )
    assert set(plan.details["layers"]) == layers
    operators = {
        node.op_type for node in onnx.load(graph.path, load_external_data=False).graph.node
    }
    assert ("QuantizeLinear" in operators) == (precision in ("int8", "int8-fp16", "fp8"))


def test_an_unverified_graph_leaves_its_reason_in_the_plan(
    vision_graph: Write, library: Library
) -> None:
    graph = vision_graph()
    unproven = VerifiedGraph.without_proof(graph, reason="--no-verify was given")
    plan = plan_from_onnx(
        unproven, graph.path.parent / "p", library=library, profiles=[BATCHES], options=ADA
    )
    assert plan.details["unverified"] == "--no-verify was given"


def test_a_target_that_is_not_offered_is_refused_with_those_that_are(
    vision_graph: Write, proven: Prove, library: Library
) -> None:
    with pytest.raises(OptionError, match=r"--target sm12: .* builds for .*sm89") as caught:
        _build(proven(vision_graph()), library, targets=("sm12",))
    assert all(target in str(caught.value) for target in library.targets)


def test_without_a_gpu_a_target_is_wanted(
    vision_graph: Write, proven: Prove, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iblip.engines.tensorrt.libraries.has_nvidia_gpu", lambda: False)
    with pytest.raises(OptionError, match=r"no NVIDIA GPU .* --target: sm75, "):
        _build(proven(vision_graph()), library, targets=())


def test_a_profile_without_an_axis_is_refused(
    vision_graph: Write, proven: Prove, library: Library
) -> None:
    other = Profile(axes={"instruction": Span(min=1, opt=1, max=1)})
    with pytest.raises(OptionError, match=r"no sizes for axis 'batch' .*; it has instruction"):
        _build(proven(vision_graph()), library, profile=other)


def test_an_operator_that_it_cannot_read_is_named(
    tmp_path: Path, vision_graph: Write, proven: Prove, library: Library
) -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 20, "com.example" : 1]>
        g (uint8[batch, 24, 24, 3] pixels) => (float[batch, 4, 32] image_embeds) {
            [nowhere_to_be_found] image_embeds = com.example.Unheard (pixels)
        }"""
    path = tmp_path / "g.onnx"
    onnx.save(parser.parse_model(text), path)
    with pytest.raises(EngineError, match=r"cannot read .*g\.onnx: .*Unheard"):
        _build(proven(replace(vision_graph(), path=path)), library)


def test_missing_weights_are_an_error(vision_graph: Write, proven: Prove, library: Library) -> None:
    graph = vision_graph()
    graph.weights[0].unlink()
    with pytest.raises(EngineError, match="cannot read"):
        _build(proven(graph), library)
    graph.path.unlink()
    with pytest.raises(EngineError, match="there is no graph"):
        _build(proven(graph), library)


def test_a_graph_that_is_not_its_contract_is_refused(
    vision_graph: Write, proven: Prove, library: Library
) -> None:
    graph = vision_graph()
    (pixels,) = graph.contract.inputs
    contract = Contract(inputs=(replace(pixels, dtype="int32"),), outputs=graph.contract.outputs)
    with pytest.raises(EngineError, match=r"'pixels': 'UINT8'.*its contract is .*'INT32'"):
        _build(proven(replace(graph, contract=contract)), library)


def test_a_graph_in_another_precision_than_asked_is_refused(
    vision_graph: Write, proven: Prove, library: Library
) -> None:
    graph = replace(vision_graph("float32"), precision="fp16")
    fault = r"asked for in fp16, but 6 of its \d+ layers compute in another dtype: \S+ \(FLOAT, ex"
    with pytest.raises(EngineError, match=fault):
        _build(proven(graph), library)


def test_a_build_that_fails_says_what_the_library_says(
    vision_graph: Write, proven: Prove, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Shapes that the graph cannot have: 24 pixels a side are in its contract.
    wrong = ((1, 12, 12, 3),) * 3
    monkeypatch.setattr(Profile, "shapes", lambda self, spec: wrong)
    with pytest.raises(EngineError, match=r"cannot build .*vision\.onnx: .*pixels"):
        _build(proven(vision_graph()), library)


def test_a_full_disk_leaves_no_half_a_plan(
    vision_graph: Write, proven: Prove, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = vision_graph()
    output = graph.path.parent / "model.plan"
    output.write_bytes(b"the plan of before")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("iblip.export.system.files.os.fsync", full)
    with pytest.raises(EngineError, match=r"model\.plan cannot be written: .*No space left"):
        plan_from_onnx(proven(graph), output, library=library, profiles=[BATCHES], options=ADA)
    assert output.read_bytes() == b"the plan of before"
    assert len(list(output.parent.iterdir())) == 3


def test_a_library_that_is_not_there_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    from iblip.engines.tensorrt import libraries

    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(libraries.importlib, "import_module", missing)
    for kind in libraries.SOURCES:
        with pytest.raises(EngineError, match=r"cannot be loaded .*pip install"):
            find_library(kind)


def test_a_library_without_targets_refuses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from iblip.engines.tensorrt import libraries

    plain = Library(kind="tensorrt", module=object(), version="11.4")
    with pytest.raises(OptionError, match=r"no NVIDIA GPU .* Build on the machine whose GPU"):
        plain.check_targets(())
    monkeypatch.setattr(libraries, "has_nvidia_gpu", lambda: True)
    assert plain.targets == plain.check_targets(()) == ()
    with pytest.raises(OptionError, match="this machine's GPU only"):
        plain.check_targets(["sm89"])


def _build(
    verified: VerifiedGraph,
    library: Library,
    *,
    profile: Profile = BATCHES,
    targets: tuple[str, ...] = ("sm89",),
) -> None:
    output = verified.graph.path.parent / "model.plan"
    options = PlanOptions(targets=targets)
    plan_from_onnx(verified, output, library=library, profiles=[profile], options=options)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is full")
def test_a_disk_that_fills_up_while_the_plan_is_written_is_an_error(
    vision_graph: Write, library: Library
) -> None:
    job = Job(library=library, graph=vision_graph())
    job.parse()
    job.configure([BATCHES], ADA)
    with (
        Path("/dev/full").open("wb", buffering=0) as file,
        pytest.raises(OSError, match="No space left"),
    ):
        job.build(file)
