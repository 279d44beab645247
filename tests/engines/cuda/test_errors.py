"""Which errors of CUDA a process must end for, by the messages that libraries write."""

from __future__ import annotations

import pytest

from iblip.engines.cuda.errors import FATAL, CudaError, find_fatal
from iblip.export.errors import EngineError

MESSAGES = {
    "cuda-bindings": "cudaMemcpyAsync failed with {name} ({text}). Restart it.",
    "a kernel of ONNX Runtime": (
        "Error in execution: Non-zero status code returned while running Mul node. Name:'/Mul' "
        "Status Message: CUDA error {name}:{text}"
    ),
    "another call of ONNX Runtime": (
        "Error when binding input: CUDA failure {number}: {text} ; GPU=0 ; hostname=vm ; file=/o/"
        "gpu_data_transfer.cc ; line=91 ; expr=cudaMemcpyAsync(dst_data, src_data, bytes, "
        "cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream.GetHandle())); "
    ),
    "TensorRT": "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime ({text})",
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_an_error_is_known_by_what_a_library_says(message: str) -> None:
    for row in FATAL:
        error = EngineError(message.format(**vars(row)))
        assert find_fatal(error) == row.name
        outer = EngineError("the language model failed")
        outer.__cause__ = error
        assert find_fatal(outer) == row.name
    for number, name, text in (
        (2, "cudaErrorMemoryAllocation", "out of memory"),
        (70, "cudaErrorIllegal", "an illegal"),
        (7000, "cudaErrorIllegalAddressSpace", "an illegal memory access was encountered twice"),
    ):
        assert find_fatal(EngineError(message.format(number=number, name=name, text=text))) is None


def test_the_table_is_cudas() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    for row in FATAL:
        status = runtime.cudaError_t(row.number)
        assert status.name == row.name
        assert runtime.cudaGetErrorString(status)[1].decode() == row.text


def test_a_cuda_error_says_to_restart_only_where_that_is_needed() -> None:
    lost = CudaError("cudaStreamSynchronize", "cudaErrorLaunchFailure", "unspecified")
    full = CudaError("cudaMalloc", "cudaErrorMemoryAllocation", "out of memory", "64 bytes")
    assert str(lost).endswith("This process can no longer use the GPU: restart it.")
    assert "--slots" in str(full)
    assert (find_fatal(lost), find_fatal(full)) == ("cudaErrorLaunchFailure", None)
