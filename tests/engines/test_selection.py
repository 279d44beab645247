"""Choosing an engine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from iblip.engines import kinds, selection
from iblip.engines.hardware.nvidia import Driver, Gpu, has_nvidia_gpu
from iblip.engines.kinds import KINDS
from iblip.engines.proofs import drop_proof, keep_proof, key_here
from iblip.engines.selection import choose_engine, language_model_kind
from iblip.export.errors import OptionError
from iblip.export.quantisation.options import Quantisation


def test_auto_takes_onnxruntime_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "has_nvidia_gpu", lambda: False)
    choice = choose_engine("auto")
    assert choice.kind == "onnxruntime"
    assert "no NVIDIA driver" in choice.reason


def test_auto_takes_what_is_proven_and_names_what_else_would_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(selection, "has_nvidia_gpu", lambda: True)
    runs = replace(KINDS["onnxruntime-cuda"], running_obstacle=lambda: None)
    monkeypatch.setattr(selection, "KINDS", {**KINDS, "onnxruntime-cuda": runs})
    choice = choose_engine()
    assert choice.kind == "onnxruntime"
    assert "would run on it: --engine onnxruntime-cuda" in choice.reason
    proven = {**KINDS, "onnxruntime-cuda": replace(runs, proven=True)}
    monkeypatch.setattr(selection, "KINDS", proven)
    assert choose_engine().kind == "onnxruntime-cuda"


HALF = {"vision_encoder": "fp16", "qformer": "fp16", "language_model": "fp16"}


def driver(name: str = "NVIDIA L4", version: str = "580.95.05") -> Driver:
    gpu = Gpu(name=name, memory=24 << 30, capability="sm89")
    return Driver(version=version, cuda="13.0", gpus=(gpu,))


@pytest.fixture
def cuda_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Driver], None]:
    """`cuda_runs(driver)`: this machine has that driver, and ONNX Runtime's CUDA provider runs."""
    runs = replace(KINDS["onnxruntime-cuda"], running_obstacle=lambda: None)
    monkeypatch.setattr(selection, "KINDS", {**KINDS, "onnxruntime-cuda": runs})
    monkeypatch.setattr(selection, "has_nvidia_gpu", lambda: True)
    monkeypatch.setenv("IBLIP_CACHE", str(tmp_path))
    return lambda found: monkeypatch.setattr(selection, "find_driver", lambda: found)


def test_auto_takes_an_engine_that_was_proven_on_this_hardware(
    cuda_runs: Callable[[Driver], None],
) -> None:
    cuda_runs(driver())
    assert choose_engine("auto", (), HALF).kind == "onnxruntime"
    key = key_here(dict.fromkeys(HALF, "onnxruntime-cuda"), HALF, driver())
    assert key.architecture == "sm89"
    keep_proof(key, {"gpu": "NVIDIA L4", "created": "2026-11-29T00:00:00+00:00"})
    choice = choose_engine("auto", (), HALF)
    assert choice.kind == "onnxruntime-cuda"
    assert "was proven on this machine's NVIDIA L4 on 2026-11-29" in choice.reason
    assert choose_engine("auto").kind == "onnxruntime"
    # Of another precision, another language model's engine, another driver it says nothing.
    assert choose_engine("auto", (), {**HALF, "qformer": "fp32"}).kind == "onnxruntime"
    assert choose_engine("auto", (), HALF, "vllm").kind == "onnxruntime"
    cuda_runs(driver(version="590.10"))
    assert choose_engine("auto", (), HALF).kind == "onnxruntime"
    cuda_runs(driver())
    drop_proof(key)
    assert choose_engine("auto", (), HALF).kind == "onnxruntime"


def test_auto_trusts_no_stub(cuda_runs: Callable[[Driver], None]) -> None:
    stub = driver("CUDA stub (sm_89)")
    cuda_runs(stub)
    key = key_here(dict.fromkeys(HALF, "onnxruntime-cuda"), HALF, stub)
    keep_proof(key, {"gpu": "CUDA stub", "created": "2026-11-29"})
    assert choose_engine("auto", (), HALF).kind == "onnxruntime"


@pytest.mark.skipif(has_nvidia_gpu(), reason="what is said without a GPU")
@pytest.mark.parametrize(
    "kind", ["onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx"]
)
def test_a_provider_that_cannot_run_here_is_built_with_a_note(kind: str) -> None:
    choice = choose_engine(kind)
    assert choice.kind == kind
    assert "It is built here, but cannot run here: " in choice.reason


def test_onnxruntime_runs_the_language_model_where_the_components_are() -> None:
    cuda, tensorrt = "onnxruntime-cuda", "onnxruntime-tensorrt"
    assert language_model_kind("onnxruntime", tensorrt, "fp16") == cuda
    assert language_model_kind("onnxruntime", tensorrt, "fp32") == "onnxruntime"
    assert language_model_kind("onnxruntime", "tensorrt", "fp16") == "onnxruntime"
    assert language_model_kind(cuda, "tensorrt", "fp32") == cuda
    assert language_model_kind("onnxruntime", cuda, "int4", Quantisation(bits=4)) == cuda
    found_at_run_time = Quantisation(bits=8, activations="dynamic")
    assert language_model_kind("onnxruntime", cuda, "int8", found_at_run_time) == "onnxruntime"
    assert language_model_kind("vllm", cuda, "fp16") == "vllm"


def test_a_target_is_checked_before_anything_is_built() -> None:
    with pytest.raises(OptionError, match="Add --engine tensorrt-rtx, or leave --target out"):
        choose_engine("auto", ["sm89"])
    pytest.importorskip("tensorrt_rtx_bindings")
    assert choose_engine("tensorrt-rtx", ["sm89"]).kind == "tensorrt-rtx"
    with pytest.raises(OptionError, match=r"--target sm12: .* builds for .*sm89"):
        choose_engine("tensorrt-rtx", ["sm12"])


def test_an_unknown_engine_is_refused_and_the_nearest_offered() -> None:
    with pytest.raises(OptionError, match="Did you mean 'tensorrt'") as caught:
        choose_engine("tensort")
    for kind in ("auto", *KINDS):
        assert kind in str(caught.value)


def test_an_engine_that_is_not_installed_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "_is_installed", lambda module: False)
    for kind in ("auto", *KINDS):
        with pytest.raises(OptionError, match=r"Run `pip install [^`]*\["):
            choose_engine(kind)


def test_tensorrt_wants_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "_is_installed", lambda module: True)
    monkeypatch.setattr(kinds, "has_nvidia_gpu", lambda: False)
    with pytest.raises(OptionError, match="no NVIDIA driver"):
        choose_engine("tensorrt")


def test_importing_the_package_loads_no_engine() -> None:
    heavy = "torch", "transformers", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx_bindings"
    modules = (
        "kinds, selection, runners, text, pipeline, types, language_model.opening, "
        "language_model.onnx.engine, onnxruntime.runner, tensorrt.builder, tensorrt.libraries"
    )
    names = [f"iblip.engines.{name.strip()}" for name in modules.split(",")]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
