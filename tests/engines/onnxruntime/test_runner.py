"""Running a graph on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import parser

from iblip.engines.onnxruntime.runner import OnnxRuntimeRunner
from iblip.engines.onnxruntime.session import SMALL_BYTES, available_cores
from iblip.engines.onnxruntime.values import KeptTensor
from iblip.export.artifact.contract import Contract, TensorSpec
from iblip.export.artifact.verified_graph import OnnxGraph
from iblip.export.errors import ContractError, EngineError

Write = Callable[..., OnnxGraph]
TASKS = Path("/proc/self/task")
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-4), ("float16", 3e-2)])
def test_outputs_are_those_of_the_arithmetic(vision_graph: Write, dtype: str, limit: float) -> None:
    graph = vision_graph(dtype)
    weights = {
        tensor.name: onnx.numpy_helper.to_array(tensor).astype(np.float64)
        for tensor in onnx.load(graph.path).graph.initializer
    }
    with OnnxRuntimeRunner(graph.path, graph.contract, threads=1) as runner:
        found = runner.infer({"pixels": PIXELS})["image_embeds"]
    image = (PIXELS / 255 - weights["mean"]) / weights["std"]
    patches = image.reshape(3, 2, 12, 2, 12, 3)  # [batch, row, y, column, x, channel]
    x = np.einsum("brycxd,wdyx->brcw", patches, weights["kernel"]).reshape(3, 4, -1)
    q, k, v = (x @ weights[name] for name in ("wq", "wk", "wv"))
    powers = np.exp(q @ k.transpose(0, 2, 1))
    wanted = x + powers / powers.sum(-1, keepdims=True) @ v
    assert found.dtype == dtype
    assert np.abs(found - wanted).max() < limit


def test_rows_of_a_batch_are_independent(vision_graph: Write) -> None:
    graph = vision_graph()
    with OnnxRuntimeRunner(graph.path, graph.contract) as runner:
        together = runner.infer({"pixels": PIXELS})["image_embeds"]
        alone = [runner.infer({"pixels": PIXELS[[i]]})["image_embeds"][0] for i in range(3)]
    assert np.allclose(together, np.stack(alone), atol=1e-6)


@pytest.mark.skipif(not TASKS.is_dir(), reason="Linux alone lists a process' threads")
@pytest.mark.skipif(available_cores() == 1, reason="one core has one thread anyway")
def test_a_graph_that_is_done_before_a_thread_wakes_up_runs_on_one(vision_graph: Write) -> None:
    graph = vision_graph()

    def threads() -> int:
        before = set(TASKS.iterdir())  # others of this process may end meanwhile
        with OnnxRuntimeRunner(graph.path, graph.contract) as runner:
            runner.infer({"pixels": PIXELS})
            return len(set(TASKS.iterdir()) - before)

    threads()  # those that every process has once it has loaded ONNX Runtime
    small = threads()
    with graph.path.with_name("more.weights").open("wb") as file:
        file.truncate(SMALL_BYTES)
    assert (small, threads()) == (0, available_cores() - 1)


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({}, "'pixels' is missing"),
        ({"pixels": PIXELS, "x": PIXELS}, "'x' is not an input"),
        ({"pixels": PIXELS.astype(np.float32)}, "'pixels' is float32, expected uint8"),
        ({"pixels": PIXELS[0]}, r"has shape \[24, 24, 3\], expected 4 axes"),
        ({"pixels": PIXELS[:, :20]}, r"has shape \[3, 20, 24, 3\], expected pixels uint8"),
    ],
)
def test_a_feed_that_does_not_fit_is_refused_before_it_runs(
    vision_graph: Write, feed: dict[str, np.ndarray], message: str
) -> None:
    graph = vision_graph()
    with (
        OnnxRuntimeRunner(graph.path, graph.contract) as runner,
        pytest.raises(ContractError, match=message),
    ):
        runner.infer(feed)


def test_arrays_that_are_views_are_read_rightly(vision_graph: Write) -> None:
    graph = vision_graph()
    turned = PIXELS[:, ::-1, :, ::-1]
    with OnnxRuntimeRunner(graph.path, graph.contract) as runner:
        found = runner.infer({"pixels": turned})["image_embeds"]
        wanted = runner.infer({"pixels": turned.copy()})["image_embeds"]
    assert (found == wanted).all()


def test_a_runner_that_is_not_open_says_so(vision_graph: Write) -> None:
    graph = vision_graph()
    runner = OnnxRuntimeRunner(graph.path, graph.contract)
    with pytest.raises(EngineError, match="not open"):
        runner.infer({"pixels": PIXELS})
    with runner:
        assert runner.infer({"pixels": PIXELS})
    with pytest.raises(EngineError, match="not open"):
        runner.infer({"pixels": PIXELS})


def test_a_missing_or_broken_graph_is_named(vision_graph: Write) -> None:
    graph = vision_graph()
    (graph.path.parent / "weights.bin").write_bytes(b"short")
    with pytest.raises(EngineError, match=r"cannot load .*vision\.onnx"):
        OnnxRuntimeRunner(graph.path, graph.contract).__enter__()
    graph.path.write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"cannot load .*vision\.onnx"):
        OnnxRuntimeRunner(graph.path, graph.contract).__enter__()
    graph.path.unlink()
    with pytest.raises(EngineError, match="there is no graph"):
        OnnxRuntimeRunner(graph.path, graph.contract).__enter__()


def test_a_graph_that_is_not_its_contract_is_refused(vision_graph: Write) -> None:
    graph = vision_graph()
    (pixels,) = graph.contract.inputs
    for other in (replace(pixels, dtype="float32"), replace(pixels, name="image")):
        contract = Contract(inputs=(other,), outputs=graph.contract.outputs)
        with pytest.raises(EngineError, match="not those of its contract"):
            OnnxRuntimeRunner(graph.path, contract).__enter__()


def test_a_failure_inside_is_chained_and_names_the_shapes(tmp_path: Path) -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[n] x) => (float[m] y) {
            shape = Constant <value_ints = [3]> ()
            y = Reshape (x, shape)
        }"""
    onnx.save(parser.parse_model(text), tmp_path / "g.onnx")
    contract = Contract(
        inputs=(TensorSpec(name="x", dtype="float32", axes=("n",)),),
        outputs=(TensorSpec(name="y", dtype="float32", axes=("m",)),),
    )
    with OnnxRuntimeRunner(tmp_path / "g.onnx", contract) as runner:
        assert runner.infer({"x": np.arange(3, dtype=np.float32)})["y"].tolist() == [0, 1, 2]
        with pytest.raises(EngineError, match=r"'x': \[4\]") as caught:
            runner.infer({"x": np.zeros(4, np.float32)})
    assert caught.value.__cause__ is not None


def test_bfloat16_goes_in_and_comes_out(tmp_path: Path) -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 20]>
        g (bfloat16[n, 2] x) => (bfloat16[n, 2] y) { y = Identity (x) }"""
    onnx.save(parser.parse_model(text), tmp_path / "g.onnx")
    spec = TensorSpec(name="x", dtype="bfloat16", axes=("n", 2))
    contract = Contract(inputs=(spec,), outputs=(replace(spec, name="y"),))
    with OnnxRuntimeRunner(tmp_path / "g.onnx", contract) as runner:
        for rows in (3, 0):
            x = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2).astype(ml_dtypes.bfloat16)
            y = runner.infer({"x": x})["y"]
            assert y.dtype == ml_dtypes.bfloat16
            assert y.shape == x.shape
            assert (y == x).all()


def test_what_is_kept_goes_from_session_to_session(tmp_path: Path) -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 20]>
        g ({dtype}[n, 2] x) => ({dtype}[n, 2] y, {dtype}[n, 2] z) {{
            y = Identity (x)
            z = Identity (x)
        }}"""
    for dtype, name in (("float32", "float"), ("bfloat16", "bfloat16")):
        onnx.save(parser.parse_model(text.format(dtype=name)), tmp_path / "g.onnx")
        spec = TensorSpec(name="x", dtype=dtype, axes=("n", 2))
        outputs = (replace(spec, name="y"), replace(spec, name="z"))
        contract = Contract(inputs=(spec,), outputs=outputs)
        x = np.arange(6).reshape(3, 2).astype(spec.numpy_dtype)
        with OnnxRuntimeRunner(tmp_path / "g.onnx", contract) as runner:
            kept = runner.infer({"x": x}, keep=["y"])
            assert isinstance(kept["y"], KeptTensor)
            assert isinstance(kept["z"], np.ndarray)
            again = runner.infer({"x": kept["y"]})
            both = np.concatenate([kept["y"], kept["y"]])
            with pytest.raises(ContractError, match=f"'x' is int32, expected {dtype}"):
                runner.infer({"x": KeptTensor(kept["y"].value, np.dtype(np.int32))})
        assert again["y"].dtype == both.dtype == spec.numpy_dtype
        assert (again["y"] == x).all()
        assert (both == np.concatenate([x, x])).all()
