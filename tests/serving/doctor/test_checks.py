"""What facts of a machine mean."""

from __future__ import annotations

from dataclasses import replace

import pytest

from iblip.engines.hardware.containers import CONTAINERS
from iblip.engines.hardware.nvidia import Driver, Gpu
from iblip.export.system.installing import install_command
from iblip.serving.doctor.checks import CHECKS
from iblip.serving.doctor.gpus import check_container_driver
from iblip.serving.doctor.machine import Machine
from iblip.serving.doctor.probes import TensorRt, Triton, Vllm
from iblip.serving.doctor.requirements import Requirement

L4 = Gpu(name="NVIDIA L4", memory=24 << 30, capability="sm89")
P100 = Gpu(name="Tesla P100", memory=16 << 30, capability="sm60")


def driver(version="580.95.05", gpus=(L4,), fault=None):
    return Driver(version=version, cuda="13.0", gpus=gpus, fault=fault)


def findings(**facts):
    machine = Machine(**facts)
    return {one.title: one for check in CHECKS for one in check(machine)}


SERVER = (
    Requirement(name="nvidia-pytriton", bounds=">=0.7"),
    Requirement(name="numpy", bounds="<2"),
)
BOTH = {"onnxruntime": "1.31.0", "onnxruntime-gpu": "1.31.1"}
WHEEL = Triton(origin="the wheel", version="2.51.0", backends=("python",), wheel=True)


@pytest.mark.parametrize(
    ("title", "facts", "verdict", "found", "remedy"),
    [
        ("Python", {"python": "3.10.4"}, "problem", "3.10.4", "PYTHON=python3.11"),
        (
            "execution providers",
            {"packages": BOTH},
            "problem",
            "onnxruntime 1.31.0 and onnxruntime-gpu 1.31.1",
            "`pip uninstall -y onnxruntime onnxruntime-gpu`",
        ),
        (
            "torchvision",
            {"packages": {"torchvision": "0.20"}, "faults": {"torchvision": "no operator nms"}},
            "problem",
            "0.20 does not load: no operator nms",
            "`pip uninstall torchvision`",
        ),
        (
            "server",
            {
                "packages": {"nvidia-pytriton": "0.7.0", "numpy": "2.4.0"},
                "requirements": {"server": SERVER},
            },
            "warning",
            "numpy 2.4.0",
            install_command("server"),
        ),
        ("client", {"requirements": {"": SERVER}}, "problem", "numpy missing", install_command()),
        ("Triton", {"triton": WHEEL, "glibc": "2.31"}, "problem", "glibc 2.31", "container"),
        (
            "Triton",
            {"triton": replace(WHEEL, unprotected="there is no C compiler")},
            "warning",
            "`classification` can end Triton (there is no C compiler)",
            "apt install gcc",
        ),
        ("NVIDIA driver", {"driver": driver(fault="cuInit says X")}, "problem", "X", "modprobe"),
        (
            "CUDA runtime",
            {"driver": driver("535.86"), "cuda_runtime": "13.0"},
            "problem",
            "under driver 535.86",
            "Update the driver",
        ),
        (
            "TensorRT",
            {"libraries": {"tensorrt": TensorRt(fault="libnvinfer.so.11 is missing")}},
            "problem",
            "libnvinfer.so.11",
            "Reinstall it",
        ),
        (
            "onnxruntime-cuda",
            {
                "providers": ("CUDAExecutionProvider", "CPUExecutionProvider"),
                "obstacles": {"onnxruntime": None, "onnxruntime-cuda": "libcuda.so.1 is missing"},
            },
            "note",
            "offered, but: libcuda.so.1 is missing",
            None,
        ),
        ("memory", {"memory": 1 << 20}, "warning", "1.00 MiB free", "Close other programs"),
        ("shared memory", {"shared_memory": 64 << 20}, "warning", "64.00 MiB free", "--shm-size"),
        ("disk", {"disk": 2 << 30}, "note", "2.00 GiB free; the largest build", None),
        ("ports", {"taken": ("gRPC",)}, "note", "8001 in use", "--grpc-port"),
        ("vLLM", {"vllm": Vllm(python="/v/bin/python")}, "warning", "has none", "vllm install"),
        ("NVIDIA driver", {}, "note", "none", "can be made here"),
    ],
)
def test_what_a_fact_means(title, facts, verdict, found, remedy):
    one = findings(**facts)[title]
    assert one.verdict == verdict
    assert found in one.found
    assert remedy is None or remedy in one.remedy


def test_gpus_are_named_with_memory_and_capability():
    found = findings(driver=driver(gpus=(L4, P100)), cuda_runtime="13.0")
    assert found["GPU 0"].found == "NVIDIA L4, 24.00 GiB, sm89"
    assert found["GPU 1"].found == "Tesla P100, 16.00 GiB, sm60"
    assert found["NVIDIA driver"].found == "580.95.05, for CUDA 13.0 and older"
    assert found["CUDA runtime"].verdict == "ok"


@pytest.mark.parametrize(
    ("tag", "has", "verdict"),
    [
        ("26.07-py3", driver("580.95.05"), "ok"),
        ("26.07-py3", driver("575.57.08"), "problem"),
        ("26.07-py3", driver("610.43.02", gpus=(P100,)), "problem"),
        ("26.07-py3", driver("610.43.02", gpus=(L4, P100)), "note"),
        ("26.07-trtllm-python-py3", driver("580.95.05"), "note"),  # CUDA 13.1 came with 590.44.01
        ("26.07-trtllm-python-py3", driver("590.44.01"), "ok"),
        ("26.07-py3", None, "note"),
    ],
)
def test_a_container_wants_a_driver(tag, has, verdict):
    finding = check_container_driver(CONTAINERS[tag], Machine(driver=has))
    assert finding.verdict == verdict


@pytest.mark.parametrize(
    ("has", "wanted", "remedy"),
    [
        (driver("575.57.08"), "580 or newer, for CUDA 13.3.1", "Update the driver."),
        (driver("610.43.02", gpus=(P100,)), "a GPU of sm75 or newer", "on a machine that has one"),
    ],
)
def test_an_old_driver_and_an_old_gpu_want_different_things(has, wanted, remedy):
    finding = check_container_driver(CONTAINERS["26.07-py3"], Machine(driver=has))
    assert finding.wanted == wanted
    assert remedy in finding.remedy
