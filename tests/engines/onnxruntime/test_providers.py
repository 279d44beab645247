"""ONNX Runtime's execution providers: what they are told, and what this machine lacks for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from iblip.engines.compiled import provider_cache
from iblip.engines.hardware.nvidia import has_nvidia_gpu
from iblip.engines.kinds import KINDS, OPENVINO
from iblip.engines.onnxruntime.probing import provider_obstacle
from iblip.engines.onnxruntime.providers import CPU, PROVIDERS, Placement
from iblip.engines.onnxruntime.runner import OnnxRuntimeRunner
from iblip.engines.onnxruntime.session import offer_providers
from iblip.engines.tensorrt.profile import profile_from_json
from iblip.export.artifact.verified_graph import OnnxGraph
from iblip.export.errors import EngineError

Write = Callable[..., OnnxGraph]
ON_A_GPU = sorted(set(PROVIDERS) - {"onnxruntime"})

pytestmark = pytest.mark.skipif(has_nvidia_gpu(), reason="what is lacking without a GPU")


def test_every_provider_is_an_engine() -> None:
    assert set(PROVIDERS) == {kind for kind, row in KINDS.items() if not row.plans} - {OPENVINO}


@pytest.mark.parametrize("kind", ON_A_GPU)
def test_what_this_machine_lacks_is_named_before_a_session_is_made(
    vision_graph: Write, kind: str
) -> None:
    graph = vision_graph()
    provider = PROVIDERS[kind]
    runner = OnnxRuntimeRunner(graph.path, graph.contract, placement=Placement(kind=kind))
    with pytest.raises(EngineError) as caught:
        runner.__enter__()
    message = str(caught.value)
    assert f"{provider.name} cannot run here" in message
    assert "build with --engine onnxruntime." in message
    assert provider_obstacle(kind) in message


def test_onnxruntime_without_cuda_names_the_package_that_has_it() -> None:
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this is onnxruntime-gpu")
    for kind in ("onnxruntime-cuda", "onnxruntime-tensorrt"):
        obstacle = provider_obstacle(kind)
        assert obstacle is not None
        assert f"has no {PROVIDERS[kind].name}; it has " in obstacle
        assert "Put `onnxruntime-gpu` in the place of `onnxruntime`" in obstacle
    assert provider_obstacle("onnxruntime") is None


def test_tensorrt_is_told_the_sizes_and_keeps_the_graphs_dtypes(
    vision_graph: Write, tmp_path: Path
) -> None:
    profile = profile_from_json({"batch": [1, 2, 8]})
    placement = Placement(
        kind="onnxruntime-tensorrt",
        device=1,
        shapes=profile.all_shapes(vision_graph().contract),
        cache=tmp_path,
    )
    (name, told), (behind, cuda), (last, nothing) = offer_providers(None, None, placement)
    assert (name, behind, last) == (
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    )
    assert told["trt_profile_min_shapes"] == "pixels:1x24x24x3"
    assert told["trt_profile_opt_shapes"] == "pixels:2x24x24x3"
    assert told["trt_profile_max_shapes"] == "pixels:8x24x24x3"
    assert told["trt_fp16_enable"] == "0"
    assert told["trt_engine_cache_path"] == str(tmp_path)
    assert told["device_id"] == cuda["device_id"] == "1"
    assert cuda["use_tf32"] == "0"
    assert nothing == {}


def test_runs_are_captured_where_that_is_asked_for() -> None:
    for captures in (False, True):
        placement = Placement(kind="onnxruntime-cuda", captures=captures)
        told = offer_providers(None, None, placement)[0][1]
        assert told.get("enable_cuda_graph") == ("1" if captures else None)


def test_what_a_provider_compiles_is_kept_for_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("IBLIP_CACHE", str(tmp_path / "cache"))
    kept = provider_cache("onnxruntime-tensorrt", "0ab1")
    assert kept == tmp_path / "cache" / "providers" / "onnxruntime-tensorrt" / "0ab1"
    assert kept.is_dir()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IBLIP_CACHE", str(tmp_path / "file"))
    assert provider_cache("onnxruntime-tensorrt", "0ab1") is None
    assert "TensorRT provider compiles its engines at every start" in caplog.text


def test_without_a_home_what_a_provider_compiles_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("iblip.export.system.cache_directory.default_directory", lambda: None)
    assert provider_cache("onnxruntime-tensorrt", "0ab1") is None
    assert "at every start: this user has no home" in caplog.text


def test_the_cpu_has_no_options() -> None:
    assert offer_providers(None, None, CPU) == [("CPUExecutionProvider", {})]


def test_a_placement_that_there_is_not_is_refused() -> None:
    with pytest.raises(EngineError, match="'onnxruntime-rocm'; expected one of onnxruntime, "):
        Placement(kind="onnxruntime-rocm")
    with pytest.raises(EngineError, match="device -1 is below 0"):
        Placement(device=-1)
