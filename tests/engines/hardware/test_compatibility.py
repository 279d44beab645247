"""Which engine loads where, by the rules that NVIDIA documents."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from iblip.engines.hardware.compatibility import RULES, TRITON_FLAG, Place, fit, loads_version
from iblip.engines.hardware.containers import CONTAINERS, DEPLOYED, find_container
from iblip.engines.hardware.findings import Finding
from iblip.engines.kinds import KINDS
from iblip.export.artifact.manifest import EngineRecord
from iblip.export.errors import OptionError

COMPATIBLE = ("version-compatible",)


@pytest.mark.parametrize(
    ("plan", "library", "flags", "loads"),
    [
        ("11.1.0.106", "11.1.0.106", (), True),
        ("11.1.0", "11.1.0.106", (), True),  # as far as it goes
        ("11.1.0.105", "11.1.0.106", (), False),
        ("11.0.0.114", "11.1.0.106", COMPATIBLE, True),
        ("11.4.1.5", "11.1.0.106", COMPATIBLE, False),  # never in an earlier one
        ("10.14.1.48", "11.1.0.106", COMPATIBLE, True),
        ("10.14.1.48", "11.1.0.106", (), False),
        ("8.6.1.6", "10.14.1.48", COMPATIBLE, True),
        ("8.6.1.6", "11.1.0.106", COMPATIBLE, False),
        ("11.1.0.106", "10.14.1.48", COMPATIBLE, False),
    ],
)
def test_versions_of_tensorrt(plan, library, flags, loads):
    assert loads_version(plan, library, flags) is loads


def engine(kind, **details):
    return EngineRecord(kind=kind, files={"model": "engines/x/model.plan"}, details=details)


CONTAINER = Place(name="26.07-py3", container=True, tensorrt="11.1.0.106", gpus=("sm89",))
TEN = Place(name="ten", container=True, tensorrt="10.14.1.48")
HERE = Place(name="here", gpus=("sm89",), tensorrt="11.1.0.106", tensorrt_rtx="1.7.1.116")
PLAN = {"version": "11.1.0.106", "targets": ["sm89"]}
RTX = {"version": "1.7.1.116", "targets": ["sm80", "sm89"]}


@pytest.mark.parametrize(
    ("record", "place"),
    [
        (engine("onnxruntime"), CONTAINER),
        (engine("onnxruntime"), Place(name="here")),
        (engine("onnxruntime-cuda"), CONTAINER),
        (engine("onnxruntime-tensorrt"), TEN),
        (engine("onnxruntime-tensorrt"), replace(CONTAINER, python=False)),
        (engine("onnxruntime"), Place(name="own", python=False, obstacle=lambda kind: "no")),
        (engine("tensorrt", **PLAN), CONTAINER),
        (engine("tensorrt", **PLAN | {"targets": ["sm86", "sm89"]}), HERE),
        (engine("tensorrt", **PLAN, flags=["hardware-compatible=ampere-plus"]), CONTAINER),
        (engine("tensorrt-rtx", **RTX), HERE),
        (engine("vllm"), CONTAINER),
    ],
    ids=lambda value: getattr(value, "kind", getattr(value, "name", None)),
)
def test_what_fits_is_not_complained_of(record, place):
    assert fit("x", record, place).verdict in ("ok", "note")


@pytest.mark.parametrize(
    ("record", "place", "wanted", "remedy"),
    [
        (
            engine("tensorrt", version="11.4.1.5"),
            CONTAINER,
            "11.1.0.106 loads",
            "an earlier one\\)",
        ),
        (engine("tensorrt", version="10.14.1.48"), CONTAINER, "11.1.0.106", "or with 10.14.1.48"),
        (engine("tensorrt", **PLAN), Place(name="v", container=True), "TensorRT", "a container"),
        (
            engine("tensorrt", **PLAN),
            Place(name="h", gpus=("sm89",)),
            "TensorRT",
            r"pip install .*\[tensorrt\]",
        ),
        (engine("tensorrt", **PLAN | {"targets": ["sm80"]}), HERE, "sm89", "--target sm89"),
        (
            engine("tensorrt", **PLAN),
            Place(name="h", tensorrt="11.1.0.106"),
            "GPU of sm89",
            "a machine that has",
        ),
        (engine("tensorrt-rtx", **RTX), CONTAINER, "does not read its plans", "--engine tensorrt"),
        (engine("tensorrt-rtx", **RTX | {"version": "1.6.0"}), HERE, "1.7.1.116", "Build it again"),
        (engine("onnxruntime-tensorrt"), CONTAINER, "TensorRT 10.*has 11.1", "onnxruntime-cuda"),
        (engine("onnxruntime-tensorrt-rtx"), CONTAINER, "TensorRT-RTX", "deploy/Dockerfile"),
        (engine("onnxruntime-cuda"), Place(name="here"), "an NVIDIA GPU", "a machine that has one"),
        (
            engine("onnxruntime"),
            Place(name="here", obstacle=lambda kind: f"{kind} is not installed."),
            "packages that run onnxruntime",
            "onnxruntime is not installed",
        ),
    ],
    ids=lambda value: getattr(value, "kind", getattr(value, "name", None)),
)
def test_what_does_not_fit_is_said_with_what_to_do(record, place, wanted, remedy):
    finding = fit("x", record, place)
    assert finding.verdict == "problem"
    assert re.search(wanted, finding.wanted)
    assert re.search(remedy, finding.remedy)


def test_a_plan_of_a_newer_gpu_family_is_not_taken_for_an_older_one():
    record = engine("tensorrt", **PLAN | {"targets": ["sm120"]}, flags=[])
    assert fit("x", record, CONTAINER).verdict == "problem"
    turing = Place(name="t", container=True, tensorrt="11.1.0.106", gpus=("sm75",))
    ampere_plus = engine("tensorrt", **PLAN, flags=["hardware-compatible=ampere-plus"])
    assert fit("x", ampere_plus, turing).verdict == "problem"


def test_notes_say_what_a_record_cannot_tell():
    old = engine("tensorrt", version="11.0.0.1", flags=["version-compatible"])
    finding = fit("x", old, CONTAINER)
    assert finding.verdict == "note"
    assert TRITON_FLAG in finding.remedy
    assert "machine that built it" in finding.remedy
    anywhere = fit("x", engine("tensorrt", **PLAN), Place(**vars(CONTAINER) | {"gpus": ()}))
    assert "needs an NVIDIA GPU of sm89" in anywhere.remedy


def test_every_kind_of_engine_has_its_rules():
    assert RULES.keys() >= KINDS.keys()


def test_containers_are_found_by_tag_or_image():
    assert find_container("26.07-py3") is DEPLOYED
    assert find_container(DEPLOYED.image) is DEPLOYED
    assert find_container("mirror.example:5000/nvidia/tritonserver:26.07-py3") is DEPLOYED
    with pytest.raises(OptionError, match=r"'example/x:26\.07-py3' is not known"):
        find_container("example/x:26.07-py3")
    with pytest.raises(OptionError, match=r"'26.06-py3' is not known.*Did you mean '26.07-py3'.*"):
        find_container("26.06-py3")


def test_the_deployed_container_has_what_builds_need():
    assert {"python", "tensorrt", "onnxruntime"} <= set(DEPLOYED.backends)
    assert DEPLOYED.tensorrt
    for tag, row in CONTAINERS.items():
        assert tag == row.tag
        assert row.least_driver >= 525
        assert (row.onnxruntime is None) == ("onnxruntime" not in row.backends)


def test_a_problem_cannot_be_told_without_a_remedy():
    with pytest.raises(ValueError, match="says what was wanted"):
        Finding(title="x", verdict="problem", found="nothing")
