"""Lets `cuda.bindings.runtime` call the stub libcudart; for runs over the stubs only.

NVIDIA's bindings carry the CUDA runtime within them, which speaks to the driver through tables that
are not documented: that cannot be stubbed. So this is the real module with the functions of
`FUNCTIONS` replaced. They take the real functions' arguments, by their names and number, and return
as these do: the status, then the results. What else asks a GPU says that it is missing here. That
the real bindings take every call's arguments is held by `tests/engines/cuda/test_device.py`.

Python imports this file at its start, where its folder is in PYTHONPATH.
"""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NAME = "cuda.bindings.runtime"

ADDRESS, SIZE, NUMBER, FLAGS = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_ulonglong

COPY = (ADDRESS, ADDRESS, SIZE, NUMBER)

FUNCTIONS: Mapping[str, tuple[Sequence[Any], Sequence[Any]]] = {
    "cudaDeviceGetAttribute": ([NUMBER], [NUMBER, NUMBER]),
    "cudaDeviceSynchronize": ([], []),
    "cudaDriverGetVersion": ([NUMBER], []),
    "cudaEventCreateWithFlags": ([ADDRESS], [FLAGS]),
    "cudaEventDestroy": ([], [ADDRESS]),
    "cudaEventElapsedTime": ([ctypes.c_float], [ADDRESS, ADDRESS]),
    "cudaEventQuery": ([], [ADDRESS]),
    "cudaEventRecord": ([], [ADDRESS, ADDRESS]),
    "cudaEventSynchronize": ([], [ADDRESS]),
    "cudaFree": ([], [ADDRESS]),
    "cudaFreeHost": ([], [ADDRESS]),
    "cudaGetDevice": ([NUMBER], []),
    "cudaGetDeviceCount": ([NUMBER], []),
    "cudaGraphDestroy": ([], [ADDRESS]),
    "cudaGraphExecDestroy": ([], [ADDRESS]),
    "cudaGraphInstantiate": ([ADDRESS], [ADDRESS, FLAGS]),
    "cudaGraphLaunch": ([], [ADDRESS, ADDRESS]),
    "cudaGraphUpload": ([], [ADDRESS, ADDRESS]),
    "cudaHostAlloc": ([ADDRESS], [SIZE, FLAGS]),
    "cudaMalloc": ([ADDRESS], [SIZE]),
    "cudaMallocHost": ([ADDRESS], [SIZE]),
    "cudaMemGetInfo": ([SIZE, SIZE], []),
    "cudaMemcpy": ([], COPY),
    "cudaMemcpyAsync": ([], [*COPY, ADDRESS]),
    "cudaMemcpy2DAsync": ([], [ADDRESS, SIZE, ADDRESS, SIZE, SIZE, SIZE, NUMBER, ADDRESS]),
    "cudaMemcpy3DAsync": ([], [ADDRESS, ADDRESS]),
    "cudaMemset": ([], [ADDRESS, NUMBER, SIZE]),
    "cudaMemsetAsync": ([], [ADDRESS, NUMBER, SIZE, ADDRESS]),
    "cudaRuntimeGetVersion": ([NUMBER], []),
    "cudaSetDevice": ([], [NUMBER]),
    "cudaStreamBeginCapture": ([], [ADDRESS, NUMBER]),
    "cudaStreamCreate": ([ADDRESS], []),
    "cudaStreamCreateWithFlags": ([ADDRESS], [FLAGS]),
    "cudaStreamDestroy": ([], [ADDRESS]),
    "cudaStreamEndCapture": ([ADDRESS], [ADDRESS]),
    "cudaStreamQuery": ([], [ADDRESS]),
    "cudaStreamSynchronize": ([], [ADDRESS]),
    "cudaStreamWaitEvent": ([], [ADDRESS, ADDRESS, FLAGS]),
}
"""Each function's results, which come first in C but for those below, and its arguments."""

RESULTS_LAST = ("cudaStreamEndCapture",)

ON_THE_HOST = ("cudaGetErrorName", "cudaGetErrorString")
"""The real ones answer without a GPU."""


def redirect(runtime: Any) -> None:
    """Replaces what asks a GPU in the real module."""
    library = ctypes.CDLL("libcudart.so.13", ctypes.RTLD_GLOBAL)
    for name, real in list(vars(runtime).items()):
        if name in FUNCTIONS:
            setattr(runtime, name, _caller(runtime, library, name, real))
        elif name.startswith("cuda") and inspect.isroutine(real) and name not in ON_THE_HOST:
            setattr(runtime, name, _missing(name))
    runtime.cudaGetDeviceProperties = _properties_of(runtime, library)
    runtime.cudaMemcpy3DBatchAsync = _batch_of(runtime, library)


def _caller(runtime: Any, library: Any, name: str, real: Any) -> Callable[..., tuple[Any, ...]]:
    results, arguments = FUNCTIONS[name]
    function = getattr(library, name)
    pointers = [ADDRESS] * len(results)
    last = name in RESULTS_LAST
    function.argtypes = [*arguments, *pointers] if last else [*pointers, *arguments]
    signature = inspect.signature(real)

    def call(*given: Any, **named: Any) -> tuple[Any, ...]:
        bound = signature.bind(*given, **named).args
        values = [result() for result in results]
        plain, pointed = [_plain(value) for value in bound], [ctypes.byref(one) for one in values]
        status = runtime.cudaError_t(
            function(*([*plain, *pointed] if last else [*pointed, *plain]))
        )
        if status != runtime.cudaError_t.cudaSuccess:
            library.cudaGetLastError()  # the bindings' own CUDA runtime remembers its own errors
            return (status, *[None] * len(values))
        return (status, *[value.value or 0 for value in values])

    call.__name__ = name
    return call


def _plain(value: Any) -> Any:
    """An address, number or member of an enumeration as ctypes takes it."""
    return value.getPtr() if hasattr(value, "getPtr") else int(value)


def _properties_of(runtime: Any, library: Any) -> Callable[[int], tuple[Any, Any]]:
    def get(device: int) -> tuple[Any, Any]:
        properties = runtime.cudaDeviceProp()
        address = ctypes.c_void_p(properties.getPtr())
        status = runtime.cudaError_t(library.cudaGetDeviceProperties(address, device))
        return status, None if status else properties

    return get


class _Work(ctypes.Structure):
    """`struct work` of `c/stub.h`."""

    _fields_ = (
        ("what", NUMBER),
        ("target", ADDRESS),
        ("source", ADDRESS),
        *((name, SIZE) for name in ("width", "rows", "depth")),
        *((name, SIZE) for name in ("target_pitch", "source_pitch")),
        *((name, SIZE) for name in ("target_slice", "source_slice")),
        ("value", NUMBER),
    )


def _batch_of(runtime: Any, library: Any) -> Callable[..., tuple[Any]]:
    """Of copies between pointers; elements are bytes."""

    def copy(count: int, copies: Sequence[Any], flags: int, stream: Any) -> tuple[Any]:
        boxes = (_Work * count)()
        for box, one in zip(boxes, copies, strict=True):
            target, source, extent = one.dst.op.ptr, one.src.op.ptr, one.extent
            box.target, box.source = int(target.ptr), int(source.ptr)
            box.width, box.rows, box.depth = extent.width, extent.height, extent.depth
            box.target_pitch, box.source_pitch = target.rowLength, source.rowLength
            box.target_slice = target.rowLength * target.layerHeight
            box.source_slice = source.rowLength * source.layerHeight
        stream = ctypes.c_void_p(_plain(stream))
        return (runtime.cudaError_t(library.stub_copy_batch(SIZE(count), boxes, stream)),)

    return copy


def _missing(name: str) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        raise NotImplementedError(f"the stubs of tests/cuda_stub have no {name}: add it there")

    return call


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the real module, and redirects it once it is loaded."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != NAME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                redirect(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Finder())
