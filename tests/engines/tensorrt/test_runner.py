"""Running a plan: on a device and a library that stand where no GPU is, and on the real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import parser

from iblip.engines.hardware.nvidia import has_nvidia_gpu
from iblip.engines.onnxruntime.runner import OnnxRuntimeRunner
from iblip.engines.tensorrt.builder import plan_from_onnx
from iblip.engines.tensorrt.kernels import FILE
from iblip.engines.tensorrt.libraries import find_library
from iblip.engines.tensorrt.options import PlanOptions
from iblip.engines.tensorrt.profile_sizes import ProfileOptions
from iblip.engines.tensorrt.runner import TensorRTRunner
from iblip.export.artifact.contract import Contract, TensorSpec
from iblip.export.artifact.manifest import EngineRecord
from iblip.export.artifact.verified_graph import OnnxGraph, VerifiedGraph
from iblip.export.errors import ContractError, EngineError, InputError

Write = Callable[..., OnnxGraph]
MakeBench = Callable[..., Any]
RNG = np.random.default_rng(0)


def pixels(batch: int) -> np.ndarray:
    return RNG.integers(0, 256, (batch, 24, 24, 3), dtype=np.uint8)


@pytest.fixture
def vision(vision_graph: Write, bench: MakeBench) -> Callable[..., Any]:
    """`vision({"batch": [1, 2, 4]}, …)`: a bench of a vision-like graph."""
    graph = vision_graph()

    def make(*profiles: dict[str, list[int]], **details: Any) -> Any:
        return bench(graph.path, graph.contract, *profiles, **details)

    return make


def runner_of(bench: Any, **options: Any) -> TensorRTRunner:
    return TensorRTRunner(
        bench.path,
        bench.contract,
        bench.record,
        library=bench.library,
        open_device=lambda number: bench.device,
        **options,
    )


def test_answers_are_the_graphs_whatever_the_shapes_before(
    vision: Callable[..., Any], vision_graph: Write, tmp_path: Path
) -> None:
    bench = vision({"batch": [1, 1, 1]}, {"batch": [1, 4, 8]})
    graph = tmp_path / "float32" / "vision.onnx"
    with (
        runner_of(bench) as runner,
        OnnxRuntimeRunner(graph, bench.contract, threads=1) as reference,
    ):
        for batch in (3, 1, 8, 3, 1, 3, 2, 1, 3, 8, 1):
            feed = {"pixels": pixels(batch)}
            found, wanted = runner.infer(feed), reference.infer(feed)
            assert found["image_embeds"].dtype == np.float32
            assert (found["image_embeds"] == wanted["image_embeds"]).all()


def test_memory_is_taken_once_and_given_back(vision: Callable[..., Any]) -> None:
    bench = vision({"batch": [1, 4, 8]})
    device = bench.device
    with runner_of(bench) as runner:
        taken = set(device.memory)
        sizes = sorted(block.size for block in device.memory.values())
        largest = [8 * 24 * 24 * 3, np.prod([8, *runner.contract.outputs[0].axes[1:]]) * 4]
        assert sizes == sorted([*largest, *largest, 512])
        kept = [runner.infer({"pixels": pixels(batch)})["image_embeds"] for batch in (1, 8, 8)]
        assert set(device.memory) == taken
        copies = [answer.copy() for answer in kept]
        runner.infer({"pixels": pixels(8)})
        for answer, copy in zip(kept, copies, strict=True):  # nothing of it is the runner's memory
            assert (answer == copy).all()
    assert not device.memory
    assert not device.streams
    assert not device.graphs


def test_a_shape_that_comes_again_is_captured_with_its_own_context(
    vision: Callable[..., Any],
) -> None:
    bench = vision({"batch": [1, 4, 8]})
    device = bench.device
    with runner_of(bench, graphs=2) as runner:
        for batch in (2, 2):
            runner.infer({"pixels": pixels(batch)})
        assert device.calls.count("capture") == 1
        device.calls.clear()
        runner.infer({"pixels": pixels(2)})
        assert device.calls == ["use", "launch", "synchronize"]
        for batch in (3, 3, 2, 4, 4):  # the third shape takes the place of the second
            runner.infer({"pixels": pixels(batch)})
        assert len(device.graphs) == 2
        device.calls.clear()
        runner.infer({"pixels": pixels(2)})
        runner.infer({"pixels": pixels(3)})
        assert device.calls.count("launch") == 1
        assert len(bench.engines[0].contexts) == 1 + 4  # one of the profile, one a capture


def test_no_graphs_are_captured_where_none_are_wanted(vision: Callable[..., Any]) -> None:
    bench = vision({"batch": [1, 4, 8]})
    with runner_of(bench, graphs=0) as runner:
        for _ in range(3):
            runner.infer({"pixels": pixels(2)})
    assert "capture" not in bench.device.calls


def test_what_cannot_be_captured_runs_as_before(
    vision: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    bench = vision({"batch": [1, 4, 8]})
    bench.device.fails = "capture"
    with runner_of(bench) as runner:
        answers = [runner.infer({"pixels": pixels(2)}) for _ in range(4)]
    assert len(answers) == 4
    assert bench.device.calls.count("capture") == 1
    assert "no longer captured as CUDA graphs: capture fails" in caplog.text


def test_the_smallest_profile_that_holds_a_run_is_taken(vision: Callable[..., Any]) -> None:
    bench = vision({"batch": [1, 4, 8]}, {"batch": [1, 1, 1]}, {"batch": [2, 2, 2]})
    with runner_of(bench, graphs=0) as runner:
        (engine,) = bench.engines
        for batch, profile in ((1, 1), (2, 2), (3, 0), (8, 0)):
            before = [dict(context.shapes) for context in engine.contexts]
            runner.infer({"pixels": pixels(batch)})
            changed = [
                context.profile
                for context, old in zip(engine.contexts, before, strict=True)
                if context.shapes != old
            ]
            assert changed in ([profile], [])  # at its largest it was before
            assert engine.contexts[profile].shapes["pixels"][0] == batch


def rtx(bench: Any) -> Any:
    """The same plan, as one of TensorRT-RTX."""
    details = {"version": "1.7.1.116"}
    bench.record = replace(bench.record, kind="tensorrt-rtx", details=details)
    bench.library = replace(bench.library, kind="tensorrt-rtx", version="1.7.1.116")
    return bench


def test_what_tensorrt_rtx_compiles_is_there_at_the_next_start(
    vision: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, folder = rtx(vision({"batch": [1, 1, 2]}, {"batch": [1, 3, 4]})), tmp_path / "c" / "graph"
    with runner_of(one, cache=folder) as runner:
        first = (folder / FILE).read_bytes()  # at once: a server may be killed
        assert json.loads(first) == [[0, 0], [1, 1]]  # both contexts share one cache
        one.engines[0].caches[0].kernels[7] = 7  # of a shape that comes
        assert len(runner.infer({"pixels": pixels(1)})["image_embeds"]) == 1
    assert len(one.engines[0].caches) == 1
    with runner_of(one, cache=folder):
        assert one.engines[1].caches[0].kernels[7] == 7
    (folder / FILE).write_bytes(b"of another GPU")
    with caplog.at_level("INFO"), runner_of(one, cache=folder):
        assert one.engines[2].caches[0].kernels == {0: 0, 1: 1}
    assert "is of another GPU, driver or TensorRT-RTX" in caplog.text
    assert json.loads((folder / FILE).read_bytes()) == [[0, 0], [1, 1]]


def test_kernels_that_cannot_be_kept_are_no_obstacle(
    vision: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    one = rtx(vision({"batch": [1, 1, 2]}))
    with runner_of(one, cache=tmp_path / "file" / "graph") as runner:
        assert len(runner.infer({"pixels": pixels(1)})["image_embeds"]) == 1
    assert "what TensorRT-RTX compiled cannot be kept in" in caplog.text
    with runner_of(one) as runner:
        assert len(runner.infer({"pixels": pixels(1)})["image_embeds"]) == 1
    assert one.engines[1].caches == []


def test_the_real_tensorrt_rtx_has_what_the_cache_calls() -> None:
    module = pytest.importorskip("tensorrt_rtx_bindings.tensorrt_rtx")
    assert "-> bool" in module.IRuntimeConfig.set_runtime_cache.__doc__
    assert "IRuntimeCache" in module.IRuntimeConfig.create_runtime_cache.__doc__
    assert "-> bool" in module.IRuntimeCache.deserialize.__doc__
    assert "IHostMemory" in module.IRuntimeCache.serialize.__doc__
    memory = module.IHostMemory
    assert hasattr(memory, "__buffer__") or hasattr(memory, "nbytes")


def test_a_run_outside_the_profiles_is_refused_with_limits_and_the_option(
    vision: Callable[..., Any],
) -> None:
    bench = vision({"batch": [1, 1, 1]}, {"batch": [2, 4, 8]})
    with runner_of(bench) as runner:
        with pytest.raises(InputError) as caught:
            runner.infer({"pixels": pixels(9)})
        assert str(caught.value) == (
            "a run of batch 9 is outside what the plan was built for: batch 1 to 1; or "
            "batch 2 to 8. Build it with a larger --max-batch."
        )
        with pytest.raises(ContractError, match="'pixels' is float32, expected uint8"):
            runner.infer({"pixels": pixels(1).astype(np.float32)})
        assert runner.infer({"pixels": pixels(8)})


def test_an_output_whose_shape_nobody_tells_is_refused(tmp_path: Path, bench: MakeBench) -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[n] x) => (int64[found] y) {
            where = NonZero (x)
            shape = Constant <value_ints = [-1]> ()
            y = Reshape (where, shape)
        }"""
    onnx.save(parser.parse_model(text), tmp_path / "g.onnx")
    contract = Contract(
        inputs=(TensorSpec(name="x", dtype="float32", axes=("n",)),),
        outputs=(TensorSpec(name="y", dtype="int64", axes=("found",)),),
    )
    made = bench(tmp_path / "g.onnx", contract, {"n": [1, 2, 4]})
    with pytest.raises(EngineError, match=r"the shape of output y of .* depends on values"):
        runner_of(made).__enter__()


def test_bfloat16_and_empty_axes_go_in_and_come_out(tmp_path: Path, bench: MakeBench) -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 20]>
        g (bfloat16[batch, past, 2] x, int64[batch] ids)
            => (bfloat16[batch, past, 2] y, int64[batch] n) {
            y = Identity (x)
            n = Add (ids, ids)
        }"""
    onnx.save(parser.parse_model(text), tmp_path / "g.onnx")
    x = TensorSpec(name="x", dtype="bfloat16", axes=("batch", "past", 2))
    ids = TensorSpec(name="ids", dtype="int64", axes=("batch",))
    contract = Contract(inputs=(x, ids), outputs=(replace(x, name="y"), replace(ids, name="n")))
    made = bench(tmp_path / "g.onnx", contract, {"batch": [1, 2, 4], "past": [0, 4, 9]})
    with runner_of(made) as runner:
        for batch, past in ((2, 5), (4, 0), (4, 0), (4, 0), (1, 9)):
            values = RNG.standard_normal((batch, past, 2)).astype(ml_dtypes.bfloat16)
            found = runner.infer({"x": values, "ids": np.arange(batch)})
            assert found["y"].dtype == ml_dtypes.bfloat16
            assert found["y"].shape == values.shape
            assert (found["y"] == values).all()
            assert found["n"].tolist() == [2 * i for i in range(batch)]


def test_an_array_that_is_a_view_is_read_rightly(vision: Callable[..., Any]) -> None:
    bench = vision({"batch": [1, 4, 8]})
    turned = pixels(2)[:, ::-1, :, ::-1]
    with runner_of(bench) as runner:
        found = runner.infer({"pixels": turned})["image_embeds"]
        assert (found == runner.infer({"pixels": turned.copy()})["image_embeds"]).all()


def test_a_runner_that_is_not_open_says_so(vision: Callable[..., Any]) -> None:
    runner = runner_of(vision({"batch": [1, 4, 8]}))
    with pytest.raises(EngineError, match="not open"):
        runner.infer({"pixels": pixels(1)})
    with runner:
        assert runner.infer({"pixels": pixels(1)})
    with pytest.raises(EngineError, match="not open"):
        runner.infer({"pixels": pixels(1)})


@pytest.mark.parametrize("call", ["allocate", "allocate_pinned"])
def test_too_little_memory_gives_back_what_was_taken(vision: Callable[..., Any], call: str) -> None:
    bench = vision({"batch": [1, 4, 8]})
    bench.device.fails = call
    with pytest.raises(EngineError, match=f"{call} fails"):
        runner_of(bench).__enter__()
    assert not bench.device.memory
    assert not bench.device.streams


def test_a_run_that_fails_leaves_the_next_one_as_it_was(vision: Callable[..., Any]) -> None:
    bench = vision({"batch": [1, 4, 8]})
    with runner_of(bench, graphs=0) as runner:
        wanted = runner.infer({"pixels": np.zeros((1, 24, 24, 3), np.uint8)})
        bench.device.fails = "execute"
        with pytest.raises(EngineError, match=r"cannot start a run of .*model\.plan"):
            runner.infer({"pixels": pixels(1)})
        bench.device.fails = ""
        again = runner.infer({"pixels": np.zeros((1, 24, 24, 3), np.uint8)})
    assert (again["image_embeds"] == wanted["image_embeds"]).all()


@pytest.mark.parametrize(
    ("details", "message"),
    [
        ({"version": "11.3.0"}, r"built by tensorrt 11\.3\.0; 11\.4\.0 is installed"),
        ({"version": ""}, "does not say which tensorrt built"),
        ({"flags": ["strip-plan"]}, "built without its weights"),
    ],
)
def test_a_plan_that_the_library_does_not_load_is_refused_by_its_record(
    vision: Callable[..., Any], details: dict[str, Any], message: str
) -> None:
    bench = vision({"batch": [1, 4, 8]}, **details)
    with pytest.raises(EngineError, match=message):
        runner_of(bench).__enter__()
    assert not bench.device.calls


def test_a_version_compatible_plan_may_bring_its_own_runtime(vision: Callable[..., Any]) -> None:
    bench = vision({"batch": [1, 4, 8]}, version="11.3.0", flags=["version-compatible"])
    with runner_of(bench) as runner:
        assert runner.infer({"pixels": pixels(1)})


def test_a_plan_that_is_missing_or_broken_or_another_is_named(vision: Callable[..., Any]) -> None:
    bench = vision({"batch": [1, 4, 8]})
    output = replace(bench.contract.outputs[0], dtype="float16")
    other = replace(bench, contract=Contract(inputs=bench.contract.inputs, outputs=(output,)))
    with pytest.raises(EngineError, match=r"differ in image_embeds: .*FLOAT.* expected .*HALF"):
        runner_of(other).__enter__()
    bench.path.write_bytes(b"not a plan")
    with pytest.raises(EngineError, match=r"cannot load the plan of .*: the plan has no header"):
        runner_of(bench).__enter__()
    bench.path.unlink()
    with pytest.raises(EngineError, match="there is no plan"):
        runner_of(bench).__enter__()


@pytest.mark.skipif(has_nvidia_gpu(), reason="what the real libraries say without a GPU")
def test_the_real_libraries_refuse_a_real_plan_without_a_gpu(
    vision_graph: Write, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    pytest.importorskip("cuda.bindings.runtime")
    graph, path = vision_graph(), tmp_path / "vision.plan"
    library = find_library("tensorrt-rtx")
    plan = plan_from_onnx(
        VerifiedGraph(graph=graph, figures={}),
        path,
        library=library,
        profiles=[ProfileOptions(max={"batch": 8}).of_contract(graph.contract)[0]],
        options=PlanOptions(targets=("sm89",)),
    )
    record = EngineRecord(kind="tensorrt-rtx", files={"model": path.name}, details=plan.details)
    with pytest.raises(EngineError, match=r"cudaErrorInsufficientDriver .* no NVIDIA driver here"):
        TensorRTRunner(path, graph.contract, record).__enter__()
    # Past the missing device, the real runtime reads the plan's header, and then wants a GPU.
    runner = TensorRTRunner(path, graph.contract, record, open_device=lambda number: None)
    with pytest.raises(EngineError, match=r"cannot load the plan of .*cudaError 35"):
        runner.__enter__()
    older = replace(record, details={**plan.details, "version": "1.6.0.1"})
    with pytest.raises(EngineError, match=r"built by tensorrt-rtx 1\.6\.0\.1"):
        TensorRTRunner(path, graph.contract, older).__enter__()
