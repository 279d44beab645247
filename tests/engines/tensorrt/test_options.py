"""What plans are built with: which library has which flag, and what it says where it has not."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from types import SimpleNamespace

import pytest

from iblip.engines.tensorrt import libraries
from iblip.engines.tensorrt.builder import plan_from_onnx
from iblip.engines.tensorrt.libraries import Library, find_library
from iblip.engines.tensorrt.options import FLAGS, PlanOptions
from iblip.engines.tensorrt.profile import Profile, Span
from iblip.export.artifact.verified_graph import OnnxGraph, VerifiedGraph
from iblip.export.errors import OptionError

BUILDER_FLAGS = (
    "REFIT",
    "TF32",
    "SPARSE_WEIGHTS",
    "VERSION_COMPATIBLE",
    "STRIP_PLAN",
    "WEIGHT_STREAMING",
    "STRICT_NANS",
)


def _library(version: str, *flags: str, levels: tuple[str, ...] = ("NONE",)) -> Library:
    """Has the names that NVIDIA documents for that version of TensorRT: it proves no build."""
    names = SimpleNamespace(
        BuilderFlag=Enum("BuilderFlag", flags),
        HardwareCompatibilityLevel=Enum("HardwareCompatibilityLevel", levels),
    )
    return Library(kind="tensorrt", module=names, version=version)


def test_an_unknown_flag_is_refused_and_the_nearest_offered() -> None:
    with pytest.raises(OptionError, match="Did you mean 'strip-plan'"):
        PlanOptions(flags=("stripplan",))
    with pytest.raises(OptionError, match="a plan can have only one of them"):
        PlanOptions(flags=tuple(word for word in FLAGS if word.startswith("hardware")))
    with pytest.raises(OptionError, match="--workspace is 0; expected 1 MiB or more"):
        PlanOptions(workspace=0)


def test_the_order_of_words_says_nothing() -> None:
    one = PlanOptions(flags=("tf32", "refit", "tf32"), targets=("SM89", "sm89", "sm86"))
    assert one == PlanOptions(flags=("refit", "tf32"), targets=("sm89", "sm86"))
    assert one.to_json() == {"targets": ["sm89", "sm86"], "flags": ["refit", "tf32"]}


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("version-compatible", "libnvinfer_lean"),
        ("hardware-compatible=ampere-plus", "name every GPU family with --target"),
        ("refit", "which needs a GPU"),
        ("strip-plan", "which needs a GPU"),
    ],
)
def test_what_tensorrt_rtx_cannot_do_here_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, word: str, reason: str
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    monkeypatch.setattr(libraries, "has_nvidia_gpu", lambda: False)
    with pytest.raises(OptionError, match=f"--builder-flag {word}: .*{reason}") as caught:
        find_library("tensorrt-rtx").check(PlanOptions(targets=("sm89",), flags=(word,)))
    offered = str(caught.value).rpartition("It offers ")[2]
    assert offered == "weight-streaming, tf32, sparse-weights, strict-nans."


def test_a_gpu_gives_more(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    monkeypatch.setattr(libraries, "has_nvidia_gpu", lambda: True)
    find_library("tensorrt-rtx").check(PlanOptions(flags=("refit", "strip-plan")))


def test_what_the_enumeration_of_a_version_lacks_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(libraries, "has_nvidia_gpu", lambda: True)
    level = PlanOptions(flags=("hardware-compatible=same-compute-capability",))
    both = ("NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY")
    _library("11.4.0", *BUILDER_FLAGS, levels=both).check(level)
    older = _library("10.0.1", *BUILDER_FLAGS[:5], levels=("NONE", "AMPERE_PLUS"))
    with pytest.raises(OptionError, match=r"tensorrt 10\.0\.1 .*HardwareCompatibilityLevel\.SAME"):
        older.check(level)
    with pytest.raises(OptionError, match=r"has no BuilderFlag\.STRICT_NANS") as caught:
        older.check(PlanOptions(flags=("strict-nans",)))
    assert "version-compatible" in str(caught.value).rpartition("It offers ")[2]


def test_flags_reach_the_library(
    vision_graph: Callable[[str], OnnxGraph], proven: Callable[[OnnxGraph], VerifiedGraph]
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    flags = ("strict-nans", "weight-streaming", "sparse-weights")
    graph = vision_graph("float16")
    plan = plan_from_onnx(
        proven(graph),
        graph.path.with_suffix(".plan"),
        library=find_library("tensorrt-rtx"),
        profiles=[
            Profile(axes={"batch": Span(min=1, opt=1, max=1)}),
            Profile(axes={"batch": Span(min=1, opt=4, max=8)}),
        ],
        options=PlanOptions(targets=("sm89", "sm120"), flags=flags, workspace=512),
    )
    assert plan.details["flags"] == ["weight-streaming", "sparse-weights", "strict-nans"]
    assert plan.details["workspace"] == 512
    assert plan.details["profiles"] == [{"batch": [1, 1, 1]}, {"batch": [1, 4, 8]}]
