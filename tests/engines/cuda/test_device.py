"""CUDA as it answers on a machine without a GPU, and its errors in words."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from iblip.engines.cuda.device import BoxCopy, CudaDevice
from iblip.engines.cuda.errors import REMEDIES, CudaError, call_checked
from iblip.engines.hardware.nvidia import has_nvidia_gpu
from iblip.export.errors import EngineError

ARRAY = np.zeros(8, np.uint8)

CALLS: dict[str, Callable[[CudaDevice], Any]] = {
    "cudaSetDevice": lambda device: device.use(),
    "cudaMalloc": lambda device: device.allocate(64),
    "cudaFree": lambda device: device.free(256),
    "cudaHostAlloc": lambda device: device.allocate_pinned(64),
    "cudaFreeHost": lambda device: device.free_pinned(ARRAY),
    "cudaStreamCreateWithFlags": lambda device: device.open_stream(),
    "cudaStreamDestroy": lambda device: device.close_stream(8),
    "cudaStreamSynchronize": lambda device: device.synchronize(8),
    "cudaStreamBeginCapture": lambda device: device.capture(8, lambda: None),
    "cudaGraphLaunch": lambda device: device.launch(8, 8),
    "cudaGraphExecDestroy": lambda device: device.forget(8),
    "cudaMemsetAsync": lambda device: device.clear(256, 64, 8),
    "cudaMemcpy2DAsync": lambda device: device.upload_rows(256, ARRAY, pitch=16, stream=8),
    "cudaMemcpy3DBatchAsync": lambda device: device.copy_boxes(
        [BoxCopy(target=256, source=512, width=8)], pitch=16, rows=4, layer=64, layers=2, stream=8
    ),
}


@pytest.fixture(scope="module")
def runtime() -> Any:
    return pytest.importorskip("cuda.bindings.runtime")


@pytest.fixture
def unopened(runtime: Any) -> CudaDevice:
    """A device whose driver was not asked for when it was made."""
    device = object.__new__(CudaDevice)
    device._runtime, device._number = runtime, 0
    return device


@pytest.mark.skipif(has_nvidia_gpu(), reason="what the real bindings say without a GPU")
@pytest.mark.parametrize("call", CALLS)
def test_the_real_bindings_take_every_call_and_name_the_missing_driver(
    unopened: CudaDevice, call: str
) -> None:
    with pytest.raises(CudaError) as caught:
        CALLS[call](unopened)
    assert caught.value.name == "cudaErrorInsufficientDriver"
    assert str(caught.value).startswith(call)
    assert "There is no NVIDIA driver here" in str(caught.value)


@pytest.mark.skipif(has_nvidia_gpu(), reason="what the real bindings say without a GPU")
def test_copies_both_ways_are_taken_too(unopened: CudaDevice) -> None:
    with pytest.raises(CudaError, match="cudaMemcpy2DAsync"):
        unopened.upload_rows(256, ARRAY.reshape(2, 4), pitch=16, stream=8)
    for copy in (unopened.upload, unopened.download):
        arguments = (256, ARRAY, 8) if copy == unopened.upload else (ARRAY, 256, 8)
        with pytest.raises(CudaError, match="cudaMemcpyAsync"):
            copy(*arguments)  # type: ignore[operator]
        copy(*[ARRAY[:0] if argument is ARRAY else argument for argument in arguments])  # type: ignore[operator]


@pytest.mark.skipif(has_nvidia_gpu(), reason="what the real bindings say without a GPU")
def test_a_device_is_not_opened_without_a_driver(runtime: Any) -> None:
    with pytest.raises(CudaError, match="cudaSetDevice of device 0 failed with cudaErrorInsuffic"):
        CudaDevice()


def test_every_remedy_is_for_an_error_that_there_is(runtime: Any) -> None:
    assert set(REMEDIES) <= set(runtime.cudaError_t.__members__)


def test_an_error_says_what_was_asked_and_what_to_do(runtime: Any) -> None:
    full = SimpleNamespace(
        cudaGetErrorName=runtime.cudaGetErrorName,
        cudaGetErrorString=runtime.cudaGetErrorString,
        cudaMalloc=lambda size: (runtime.cudaError_t.cudaErrorMemoryAllocation, None),
    )
    with pytest.raises(EngineError) as caught:
        call_checked(full, "cudaMalloc", 10**12, asked="1,000,000,000,000 bytes")
    assert str(caught.value) == (
        "cudaMalloc of 1,000,000,000,000 bytes failed with cudaErrorMemoryAllocation (out of "
        f"memory). {REMEDIES['cudaErrorMemoryAllocation']}"
    )


def test_a_capture_is_ended_even_where_its_work_fails(runtime: Any) -> None:
    told = []

    class Recorder:
        cudaStreamCaptureMode = runtime.cudaStreamCaptureMode  # noqa: N815

        def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
            told.append(name)
            return lambda *arguments: (runtime.cudaError_t.cudaSuccess, 7)

    device = object.__new__(CudaDevice)
    device._runtime, device._number = Recorder(), 0

    def fails() -> None:
        raise EngineError("the run is refused")

    with pytest.raises(EngineError, match="the run is refused"):
        device.capture(8, fails)
    assert told == ["cudaStreamBeginCapture", "cudaStreamEndCapture"]
    told.clear()
    assert device.capture(8, lambda: None) == 7
    assert told[-3:] == ["cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphDestroy"]
