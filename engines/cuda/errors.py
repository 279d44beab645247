"""CUDA errors by name, with what to do about the common ones."""

from __future__ import annotations

from collections.abc import Mapping
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
    "cudaErrorIllegalAddress": (
        "A kernel accessed memory outside its own, and this process can no longer use the GPU: "
        "restart it."
    ),
}
"""CUDA's name of an error to what to do."""


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
        remedy = REMEDIES.get(name, "")
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
