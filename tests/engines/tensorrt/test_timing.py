"""Timing caches: on the real calls of TensorRT-RTX, and on what NVIDIA documents of TensorRT's.

The real ones hold nothing, as nothing is timed there. `Config` and `Timings` behave as the
documentation of `ITimingCache` says; they are no proof that TensorRT does.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from iblip.engines.cache.key import PlanInputs
from iblip.engines.cache.store import EngineCache
from iblip.engines.tensorrt.builder import plan_from_onnx
from iblip.engines.tensorrt.libraries import find_library
from iblip.engines.tensorrt.options import PlanOptions
from iblip.engines.tensorrt.profile import Profile, Span
from iblip.engines.tensorrt.timing import timings
from iblip.export.artifact.verified_graph import OnnxGraph, VerifiedGraph


@dataclass
class Timings:
    """An `ITimingCache`: times by kernel, under a header of the GPU that they are of."""

    gpu: str
    times: dict[str, float] = field(default_factory=dict)

    def combine(self, input_cache: Timings, ignore_mismatch: bool) -> bool:
        if input_cache.gpu != self.gpu and not ignore_mismatch:
            return False
        self.times = {**input_cache.times, **self.times}
        return True

    def serialize(self) -> bytes:
        return json.dumps([self.gpu, self.times]).encode()


@dataclass
class Config:
    """An `IBuilderConfig` on one GPU."""

    gpu: str = "L4"
    used: Timings | None = None

    def create_timing_cache(self, serialized: bytes) -> Timings:
        try:
            gpu, times = json.loads(serialized)
        except ValueError:  # none, or damaged: "returning an empty timing cache"
            return Timings(self.gpu)
        return Timings(gpu, times)

    def set_timing_cache(self, cache: Timings, ignore_mismatch: bool) -> bool:
        if cache.gpu != self.gpu and not ignore_mismatch:
            return False
        self.used = cache
        return True

    def build(self, **times: float) -> None:
        """Times what is not known."""
        assert self.used is not None
        self.used.times = {**times, **self.used.times}


def kept(path: Path) -> Any:
    return json.loads(path.read_bytes())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "timing" / "tensorrt-10.13.cache"


def test_a_build_begins_with_the_timings_of_those_before(path: Path) -> None:
    with timings(first := Config(), path):
        first.build(conv=1.0, matmul=2.0)
    with timings(second := Config(), path):
        assert second.used is not None
        assert second.used.times == {"conv": 1.0, "matmul": 2.0}
        second.build(matmul=9.0, softmax=3.0)
    assert kept(path) == ["L4", {"conv": 1.0, "matmul": 2.0, "softmax": 3.0}]


def test_what_another_build_adds_meanwhile_stays(path: Path) -> None:
    with timings(slow := Config(), path):
        slow.build(conv=1.0)
        with timings(quick := Config(), path):
            quick.build(matmul=2.0)
    assert kept(path) == ["L4", {"conv": 1.0, "matmul": 2.0}]
    assert sorted(each.name for each in path.parent.iterdir()) == [
        "tensorrt-10.13.cache",
        "tensorrt-10.13.lock",
    ]


@pytest.mark.parametrize("content", [b"", b"\x00garbage", b'["H100", {"conv": 5.0}]'])
def test_damaged_timings_and_those_of_another_gpu_are_replaced(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with timings(config := Config(), path):
        assert config.used == Timings("L4")
        config.build(conv=1.0)
    assert kept(path) == ["L4", {"conv": 1.0}]


def test_a_build_that_fails_keeps_no_timings(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), timings(Config(), path):
        raise ZeroDivisionError
    assert not path.exists()


def test_timings_that_cannot_be_kept_are_told_and_fail_nothing(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.write_text("a file in its place")
    with timings(config := Config(), path):
        config.build(conv=1.0)
    assert "timings cannot be read from" in caplog.text
    assert "timings cannot be kept in" in caplog.text


def test_without_a_path_the_config_is_left_alone() -> None:
    with timings(config := Config(), None):
        assert config.used is None


def test_they_are_of_one_version_and_one_gpu_and_of_libraries_that_time(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    inputs = PlanInputs(
        graph="0" * 64,
        precision="fp16",
        library="tensorrt",
        version="10.13.2",
        targets=(),
        device={"name": "NVIDIA L4", "memory": 2**34, "capability": "sm89", "cuda": "13.0"},
        settings={},
    )
    assert cache.timing_cache(inputs) == (
        tmp_path / "timing" / "tensorrt-10.13.2-nvidia-l4-17179869184-sm89-13.0.cache"
    )
    assert cache.timing_cache(replace(inputs, library="tensorrt-rtx")) is None
    assert cache.timing_cache(replace(inputs, targets=("sm89",), device=None)) is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_real_calls_are_there_and_tensorrt_rtx_times_nothing(
    vision_graph: Callable[..., OnnxGraph], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    library, graph = find_library("tensorrt-rtx"), vision_graph("float16")
    caplog.set_level(logging.WARNING)
    for name in ("first", "second"):  # the second with what the first kept
        plan_from_onnx(
            VerifiedGraph(graph=graph),
            path.parents[1] / f"{name}.plan",
            library=library,
            profiles=[Profile(axes={"batch": Span(min=1, opt=2, max=8)})],
            options=PlanOptions(targets=("sm89",)),
            timing=path,
        )
    assert 0 < path.stat().st_size < 1000
    config = library.module.Builder(library.module.Logger()).create_builder_config()
    assert config.create_timing_cache(path.read_bytes()).queryKeys() == []
    assert "accepts no timing cache" not in caplog.text
