"""What ONNX Runtime's real CUDA provider refuses, reports and keeps, over the stubs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper

from iblip.engines.cuda.device import CudaDevice
from iblip.engines.cuda.errors import CudaError, find_fatal
from iblip.engines.onnxruntime.providers import Placement
from iblip.engines.onnxruntime.runner import OnnxRuntimeRunner
from iblip.engines.onnxruntime.values import KeptTensor
from iblip.engines.pipeline import Pipeline
from iblip.export.artifact.contract import Contract, TensorSpec
from iblip.export.errors import EngineError, IblipError
from iblip.serving.steps.ending import EXIT_STATUS
from tests.cuda_stub import counting

pytestmark = pytest.mark.cuda_stub

WIDTH = 64
Make = Callable[..., OnnxRuntimeRunner]
Run = Callable[..., Any]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make("MatMul", "int32", weights=True)`: a runner of a graph of one operator."""

    def write(
        operator: str, dtype: str, *, weights: bool = False, device: int = 0
    ) -> OnnxRuntimeRunner:
        kind = getattr(onnx.TensorProto, {"float32": "FLOAT"}.get(dtype, dtype.upper()))
        shape = ["rows", WIDTH]
        zeros = [0.0] * (WIDTH * WIDTH)
        square = [helper.make_tensor("w", kind, [WIDTH, WIDTH], zeros)] if weights else []
        inputs = ["x", *(tensor.name for tensor in square)]
        graph = helper.make_graph(
            [helper.make_node(operator, inputs, ["y"], name="the_node")],
            "graph",
            [helper.make_tensor_value_info("x", kind, shape)],
            [helper.make_tensor_value_info("y", kind, shape)],
            square,
        )
        opset = [helper.make_opsetid("", 20)]
        path = tmp_path / "model.onnx"
        path.write_bytes(
            helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
        )
        axes = ("rows", WIDTH)
        contract = Contract(
            inputs=(TensorSpec(name="x", dtype=dtype, axes=axes),),
            outputs=(TensorSpec(name="y", dtype=dtype, axes=axes),),
        )
        placement = Placement(kind="onnxruntime-cuda", device=device)
        return OnnxRuntimeRunner(path, contract, threads=1, placement=placement)

    return write


def feed(rows: int, dtype: str = "float32") -> dict[str, np.ndarray[Any, Any]]:
    return {"x": np.ones((rows, WIDTH), dtype)}


@contextmanager
def broken_after(launches: int, error: int) -> Iterator[None]:
    """A GPU that fails with an error after some more launches, and from then on."""
    with counting.settings(fail_after=launches, fail_with=error):
        yield


OBSTACLE = """
import sys
{first}
from iblip.engines.onnxruntime.probing import provider_obstacle

print(provider_obstacle("onnxruntime-cuda"))
"""


def test_missing_bindings_are_named_before_a_session_is_made(in_process_of_its_own: Run) -> None:
    first = "sys.modules['cuda.bindings'] = None"
    obstacle = in_process_of_its_own(OBSTACLE.format(first=first)).stdout
    assert "NVIDIA's cuda-bindings cannot be loaded" in obstacle
    assert "pip install cuda-bindings" in obstacle


def test_what_stays_on_the_gpu_can_be_read_and_joined(make: Make) -> None:
    with make("Neg", "float16") as runner:
        kept = [runner.infer(feed(rows, "float16"), keep=["y"])["y"] for rows in (2, 3)]
        assert all(isinstance(one, KeptTensor) for one in kept)
        assert {one.value.device_name() for one in kept} == {"cuda"}
        joined = np.concatenate(kept)
        assert (joined.shape, joined.dtype) == ((5, WIDTH), np.float16)
        np.testing.assert_array_equal(joined[:2], np.asarray(kept[0]))
        again = runner.infer({"x": kept[1]})["y"]  # fed to a session, it is not copied
        assert again.shape == (3, WIDTH)


def test_what_numpy_cannot_have_is_refused_by_name(make: Make) -> None:
    with make("Neg", "bfloat16") as runner:
        kept = runner.infer({"x": np.ones((2, WIDTH), ml_dtypes.bfloat16)}, keep=["y"])["y"]
        with pytest.raises(IblipError, match=r"a bfloat16 tensor of shape .* in cuda memory"):
            np.asarray(kept)


LOST = """
import sys, threading
from pathlib import Path
import numpy as np
from iblip.engines.cuda.errors import find_fatal
from iblip.engines.language_model.opening import open_engine
from iblip.export.artifact.manifest import Manifest
from iblip.serving.steps.answering import Answering
from iblip.serving.steps.questions import Question
from tests.cuda_stub import counting

def tell(text):  # in one piece: several threads tell
    sys.stdout.write(f"{text}\\n")
    sys.stdout.flush()

class Reply:
    def delta(self, text): pass
    def finish(self, answer): tell("answered")
    def fail(self, error): tell(find_fatal(error))
    def is_cancelled(self): return False

build = Path(sys.argv[1])
manifest = Manifest.read(build)
facts = manifest.language_model
prompt = np.zeros((1, facts.num_query_tokens, facts.hidden_size), np.float32)
answering = Answering(open_engine(build, manifest, threads=1), lambda question: prompt)
question = Question(prompt="What?", pixels=np.zeros((1, 4, 4, 3), np.uint8))
with counting.settings(fail_after=1, fail_with=700):  # where text is embedded
    for _ in range(3):
        answering.answer(question, Reply())
    threading.Event().wait(60)
"""


def test_a_model_whose_gpu_is_lost_answers_all_and_ends(
    cuda_build: Callable[[str, str], Path], in_process_of_its_own: Run
) -> None:
    done = in_process_of_its_own(LOST, cuda_build("instructblip-demo-vicuna", "fp16"))
    assert done.returncode == EXIT_STATUS, done.stderr
    assert done.stdout.split() == ["cudaErrorIllegalAddress"] * 3
    assert "this process can no longer use the GPU, so it ends with status" in done.stderr


def test_a_product_on_the_cpu_is_refused_by_name(make: Make) -> None:
    runner = make("MatMul", "int32", weights=True)
    with pytest.raises(EngineError, match=r"would leave 1 MatMul \(the_node\) of .* to the CPU"):
        runner.__enter__()
    with make("MatMul", "float32", weights=True) as runner:
        assert runner.infer(feed(2))["y"].shape == (2, WIDTH)


def test_what_else_is_on_the_cpu_is_named(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), make("Acosh", "float32"):
        pass
    assert "CUDAExecutionProvider leaves 1 Acosh (the_node) of" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING), make("Neg", "float32"):
        pass
    assert caplog.text == ""


def test_a_lost_gpu_is_known_by_what_onnxruntime_says(make: Make) -> None:
    with make("Neg", "float32") as runner:
        runner.infer(feed(2))
        with broken_after(1, 719):
            for _ in range(3):  # a kernel's own error, then that of every call after it
                with pytest.raises(EngineError) as caught:
                    runner.infer(feed(2))
                assert find_fatal(caught.value) == "cudaErrorLaunchFailure"


def test_a_lost_gpu_is_known_by_what_cudas_bindings_say(make: Make) -> None:
    device = CudaDevice(0)
    stream = device.open_stream()
    with make("Neg", "float32") as runner, broken_after(1, 700):
        with pytest.raises(EngineError):
            runner.infer(feed(2))
        with pytest.raises(CudaError, match=r"cudaErrorIllegalAddress .* restart it") as caught:
            device.synchronize(stream)
    assert find_fatal(caught.value) == "cudaErrorIllegalAddress"


def test_too_little_memory_ends_no_process(make: Make) -> None:
    with (
        make("Neg", "float32") as runner,
        broken_after(1, 2),
        pytest.raises(EngineError, match="cudaErrorMemoryAllocation") as caught,
    ):
        runner.infer(feed(2))
    assert find_fatal(caught.value) is None


def test_longer_and_longer_prompts_keep_the_memory_of_the_longest(make: Make) -> None:
    with make("MatMul", "float32", weights=True) as runner:
        runner.infer(feed(2000))
        with counting.counted() as counts:
            for rows in range(1, 2000, 40):
                runner.infer(feed(rows))
        assert counts["allocations"] == 0
    with make("MatMul", "float32", weights=True) as runner:
        runner.infer(feed(1))
        with counting.counted() as counts:
            for rows in range(1, 2000, 40):
                runner.infer(feed(rows))
        assert counts["allocations"] <= 4  # one for each power of two, from 1 MiB on
        # Input and output of the longest; the arena doubles.
        assert counts["allocated_bytes"] <= 4 * 2 * 2000 * WIDTH * 4


def test_a_session_is_on_the_gpu_of_its_number(make: Make) -> None:
    with pytest.raises(EngineError, match="GPU 1 was asked for; the driver names 1,"):
        make("Neg", "float32", device=1).__enter__()
    with counting.settings(devices=2), make("Neg", "float32", device=1) as runner:
        kept = runner.infer(feed(2), keep=["y"])["y"]
        assert kept.value.device_name() == "cuda"


def test_a_whole_model_is_on_the_gpu_of_its_number(cuda_build: Callable[[str, str], Path]) -> None:
    build = cuda_build("instructblip-demo-vicuna", "fp16")
    with pytest.raises(EngineError, match="GPU 1 was asked for"), Pipeline(build, device=1):
        pass
    with counting.settings(devices=2), Pipeline(build, threads=1, device=1) as pipeline:
        size = pipeline.manifest.preprocessing
        image = np.zeros((size.height, size.width, 3), np.uint8)
        assert pipeline.answer(image, "What is it?").finish_reason in ("eos", "length")
