"""The table of checks of a machine. Each takes the facts, and says what they mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from iblip.engines.hardware.findings import Finding
from iblip.serving.doctor.gpus import check_cuda, check_driver
from iblip.serving.doctor.libraries import check_onnxruntime, check_tensorrt
from iblip.serving.doctor.machine import Machine
from iblip.serving.doctor.packages import check_jobs, check_loading, check_python, check_torch
from iblip.serving.doctor.resources import check_disk, check_memory, check_shared_memory
from iblip.serving.doctor.servers import check_ports, check_triton, check_vllm

Check = Callable[[Machine], Iterable[Finding]]

CHECKS: tuple[Check, ...] = (
    check_python,
    check_jobs,
    check_loading,
    check_torch,
    check_onnxruntime,
    check_driver,
    check_cuda,
    check_tensorrt,
    check_triton,
    check_vllm,
    check_memory,
    check_disk,
    check_shared_memory,
    check_ports,
)
"""In the order in which they are reported."""
