"""The stubs are as strict as CUDA where a program could go wrong unnoticed."""

from __future__ import annotations

import ctypes
import signal
from typing import Any

import numpy as np
import pytest

from iblip.engines.cuda.device import CudaDevice
from iblip.engines.cuda.errors import CudaError, call_checked
from iblip.engines.hardware.nvidia import find_driver
from tests.cuda_stub.counting import counted, read_counters, settings
from tests.pins import PINS

pytestmark = pytest.mark.cuda_stub


@pytest.fixture
def device() -> CudaDevice:
    return CudaDevice()


def copy_rows(target: int, source: int, *, pitch: int, width: int, rows: int, stream: int) -> None:
    kind = runtime().cudaMemcpyKind.cudaMemcpyDeviceToDevice
    sizes = (pitch, source, pitch, width, rows)
    call_checked(runtime(), "cudaMemcpy2DAsync", target, *sizes, kind, stream)


def runtime() -> Any:
    from cuda.bindings import runtime

    return runtime


def test_this_environment_has_the_pinned_onnxruntime_gpu_and_numpy_2():
    from importlib import metadata

    assert metadata.version("onnxruntime-gpu") == PINS["onnxruntime-gpu"]
    assert metadata.version("cuda-bindings") == PINS["cuda-bindings"]
    assert np.__version__.startswith("2.")


def test_the_driver_is_probed_as_a_real_one():
    driver = find_driver()
    assert driver is not None
    assert driver.fault is None
    assert driver.version == "580.95.05"
    assert [gpu.capability for gpu in driver.gpus] == ["sm90"]
    with settings(devices=0):
        assert find_driver().fault == "cuInit says CUDA_ERROR_NO_DEVICE"


def test_rows_are_copied_as_numpy_would(device):
    source = np.random.default_rng(0).integers(0, 256, (6, 64), dtype=np.uint8)
    expected = np.zeros_like(source)
    expected[:, :16] = source[:, :16]
    expected[2:4, 32:48] = 7
    with counted() as counts:
        stream, address, other = device.open_stream(), device.allocate(384), device.allocate(384)
        try:
            device.upload(address, source, stream)
            device.clear(other, 384, stream)
            copy_rows(other, address, pitch=64, width=16, rows=6, stream=stream)
            sevens = np.full((2, 16), 7, np.uint8)
            device.upload_rows(other + 2 * 64 + 32, sevens, pitch=64, stream=stream)
            found = np.empty_like(source)
            device.download(found, other, stream)
            device.synchronize(stream)
        finally:
            device.free(address)
            device.free(other)
            device.close_stream(stream)
    assert (found == expected).all()
    assert counts["allocations"] == counts["frees"] == 2
    assert (counts["allocated_bytes"], counts["streams"], counts["faults"]) == (0, 0, 0)
    assert (counts["host_to_device"], counts["device_to_device"], counts["device_to_host"]) == (
        2,
        1,
        1,
    )


def test_a_captured_copy_runs_when_it_is_launched(device):
    stream, address = device.open_stream(), device.allocate(64)
    pinned = device.allocate_pinned(64)
    pinned[:] = 3
    with counted() as counts:
        graph = device.capture(stream, lambda: device.upload(address, pinned, stream))
    assert counts["host_to_device"] == 0
    pinned[:] = 5
    with counted() as counts:
        device.launch(graph, stream)
        found = np.zeros(64, np.uint8)
        device.download(found, address, stream)
        device.synchronize(stream)
    assert counts["graph_launches"] == 1
    assert (found == 5).all()
    device.forget(graph)
    with pytest.raises(CudaError):
        device.launch(graph, stream)
    device.free_pinned(pinned)
    device.free(address)
    device.close_stream(stream)


def test_page_locked_memory_is_filled_when_the_host_has_waited(device):
    stream, address, pinned = device.open_stream(), device.allocate(64), device.allocate_pinned(64)
    with counted() as counts:
        device.upload(address, np.full(64, 3, np.uint8), stream)
        device.download(pinned, address, stream)
        assert (pinned == 0xFF).all()
        device.synchronize(stream)
        assert (pinned == 3).all()
        device.upload(address, pinned, stream)
        device.synchronize(stream)
        pinned[:] = 4
    assert counts["faults"] == 0
    with counted() as counts:
        device.upload(address, pinned, stream)
        pinned[:] = 5  # the GPU may not have read it yet
        device.synchronize(stream)
    assert counts["faults"] == 1
    device.free_pinned(pinned)
    device.free(address)
    device.close_stream(stream)


WRONG = {
    "a free of an unknown address": lambda device, a, s: device.free(a + 64),
    "a copy beyond its allocation": lambda device, a, s: device.upload(
        a, np.zeros(65, np.uint8), s
    ),
    "a copy between device and device of the host's memory": lambda device, a, s: copy_rows(
        a, np.zeros(64, np.uint8).ctypes.data, pitch=8, width=8, rows=8, stream=s
    ),
    "work on a stream that was never opened": lambda device, a, s: device.clear(a, 64, s + 8),
    "a launch of no graph": lambda device, a, s: device.launch(a, s),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_call_that_no_correct_program_makes_fails_and_is_counted(device, wrong):
    stream, address = device.open_stream(), device.allocate(64)
    with counted() as counts, pytest.raises(CudaError, match="cudaErrorInvalid"):
        WRONG[wrong](device, address, stream)
    assert counts["faults"] == 1
    device.free(address)
    device.close_stream(stream)


def test_a_failure_of_the_bindings_is_not_taken_for_one_of_onnx_runtime(device):
    with pytest.raises(CudaError):
        device.free(64)
    assert ctypes.CDLL("libcudart.so.13").cudaPeekAtLastError() == 0


def test_a_wait_within_a_capture_spoils_it(device):
    stream = device.open_stream()
    with pytest.raises(CudaError, match="cudaErrorStreamCaptureUnsupported"):
        device.capture(stream, lambda: device.synchronize(stream))
    device.synchronize(stream)
    device.close_stream(stream)


def test_memory_that_the_card_does_not_have_is_refused_by_name(device):
    used = read_counters()["allocated_bytes"]  # by tests that failed as expected
    with settings(total_bytes=used + 5000, other_bytes=4000), counted() as counts:
        address = device.allocate(600)
        with pytest.raises(CudaError, match="of 600 bytes failed with cudaErrorMemoryAllocation"):
            device.allocate(600)
        device.free(address)
        device.free(device.allocate(1000))
    assert counts["faults"] == 0


def test_the_host_cannot_read_device_memory(in_process_of_its_own):
    code = """
import ctypes, sys
from iblip.engines.cuda.device import CudaDevice
ctypes.string_at(CudaDevice().allocate(64), 64)
"""
    assert in_process_of_its_own(code).returncode == -signal.SIGSEGV


def test_a_broken_gpu_fails_every_call(in_process_of_its_own):
    code = """
import ctypes
from iblip.engines.cuda.device import CudaDevice
device = CudaDevice()
stream = device.open_stream()
library = ctypes.CDLL("libcudart.so.13")
assert library.stub_launch(b"kernel", ctypes.c_void_p(stream)) == 0  # what it does comes later
for call in (lambda: device.synchronize(stream), lambda: device.allocate(8), device.use):
    try:
        call()
    except Exception as error:
        print(error)
"""
    lines = in_process_of_its_own(code, fail_after=1).stdout.splitlines()
    assert len(lines) == 3
    assert all("cudaErrorIllegalAddress" in line for line in lines)
