"""CUDA errors by name: what to do about the common ones, and which of them end a process."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from iblip.export.errors import EngineError

REMEDIES: Mapping[str, str] = {
    "cudaErrorInsufficientDriver": (
        "There is no NVIDIA driver here, or it is older than the CUDA version of the package "
        "cuda-bindings. Install or update the driver, or install a cuda-bindings of its version."
    ),
    "cudaErrorNoDevice": (
        "The driver sees no GPU. In a container, start it with --gpus all; elsewhere, look at "
        "CUDA_VISIBLE_DEVICES and nvidia-smi."
    ),
    "cudaErrorInvalidDevice": "There are not that many GPUs; they are counted from 0.",
    "cudaErrorMemoryAllocation": (
        "The GPU has too little free memory. Build with a smaller --max-batch, --slots or "
        "--max-length, or stop what else runs on it (nvidia-smi)."
    ),
    "cudaErrorNoKernelImageForDevice": (
        "The plan has no code for this GPU: build it on this machine, or with its --target."
    ),
}
"""CUDA's name of an error to what to do."""


RESTART = "This process can no longer use the GPU: restart it."
"""What to do about an error of `FATAL`."""


@dataclass(frozen=True, kw_only=True)
class FatalError:
    """One row of `FATAL`.

    Attributes:
        number: of the error.
        name: as CUDA has it.
        text: what CUDA says of it.
    """

    number: int
    name: str
    text: str


def _row(number: int, name: str, text: str) -> FatalError:
    return FatalError(number=number, name=f"cudaError{name}", text=text)


FATAL: tuple[FatalError, ...] = (
    _row(214, "ECCUncorrectable", "uncorrectable ECC error encountered"),
    _row(226, "Contained", "Invalid access of peer GPU memory over nvlink or a hardware error"),
    _row(700, "IllegalAddress", "an illegal memory access was encountered"),
    _row(702, "LaunchTimeout", "the launch timed out and was terminated"),
    _row(710, "Assert", "device-side assert triggered"),
    _row(714, "HardwareStackError", "hardware stack error"),
    _row(715, "IllegalInstruction", "an illegal instruction was encountered"),
    _row(716, "MisalignedAddress", "misaligned address"),
    _row(717, "InvalidAddressSpace", "operation not supported on global/shared address space"),
    _row(718, "InvalidPc", "invalid program counter"),
    _row(719, "LaunchFailure", "unspecified launch failure"),
    _row(721, "TensorMemoryLeak", "tensor memory not completely freed"),
    _row(810, "MpsClientTerminated", "the MPS client has been terminated by the server"),
    _row(911, "ExternalDevice", "an async error has occured in external entity outside of CUDA"),
)
"""Errors after which every call of CUDA fails until the process ends: `driver_types.h` of CUDA 13
says "the process must be terminated and relaunched" of all but the first, an ECC error, which
destroys the process's context as well."""

_NAMED = re.compile(
    r"\b(?P<name>cudaError\w+)"  # by cuda-bindings, and by ONNX Runtime where a kernel fails
    r"|CUDA failure (?P<number>\d+): "  # by ONNX Runtime where another call fails
    r"|Cuda (?:Runtime|Driver) \((?P<text>[^)]*)\)"  # by TensorRT
)


def find_fatal(error: BaseException) -> str | None:
    """The name of the CUDA error because of which this process can no longer use the GPU.

    It is looked for in the messages of the error and of those that it was raised from.

    Returns:
        such as `cudaErrorIllegalAddress`; `None` if the process can go on.
    """
    cause: BaseException | None = error
    while cause is not None:
        for match in _NAMED.finditer(str(cause)):
            for row in FATAL:
                if match.group(match.lastgroup or 0) in (row.name, str(row.number), row.text):
                    return row.name
        cause = cause.__cause__
    return None


class CudaError(EngineError):
    """A call of CUDA failed.

    Args:
        call: the function.
        name: of the error, as CUDA has it: `cudaErrorMemoryAllocation`.
        text: what CUDA says of it.
        asked: what the call asked for, for the message: `64 bytes`.

    Attributes:
        name: see above.
    """

    def __init__(self, call: str, name: str, text: str, asked: str = "") -> None:
        self.name = name
        of = f" of {asked}" if asked else ""
        fatal = any(row.name == name for row in FATAL)
        remedy = RESTART if fatal else REMEDIES.get(name, "")
        super().__init__(f"{call}{of} failed with {name} ({text}). {remedy}".rstrip())


def call_checked(runtime: Any, call: str, *arguments: Any, asked: str = "") -> Any:
    """Calls a function of `cuda.bindings.runtime`; returns `None`, one value, or a tuple.

    Args:
        runtime: the module.
        call: the function's name.
        arguments: its arguments.
        asked: what the call asks for, for the message.

    Raises:
        CudaError: the call failed.
    """
    status, *results = getattr(runtime, call)(*arguments)
    if int(status) != 0:
        name, text = (
            getattr(runtime, query)(status)[1].decode(errors="replace")
            for query in ("cudaGetErrorName", "cudaGetErrorString")
        )
        raise CudaError(call, name, text, asked)
    if not results:
        return None
    return results[0] if len(results) == 1 else tuple(results)
