"""The NVIDIA driver, its GPUs, and the CUDA runtime, queried through their own libraries.

Every CUDA program loads `libcuda`, so its answers are what an engine would see. Only NVML, which
comes with the same driver, knows the driver's own version.
"""

from __future__ import annotations

import ctypes
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CUDA, NVML = "libcuda.so.1", "libnvidia-ml.so.1"

MAJOR, MINOR = 75, 76
"""`CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR` of `cuda.h`."""

NAME_BYTES = 256

VERSION_BYTES = 80
"""`NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE` of `nvml.h`."""

RUNTIMES = ("libcudart.so.13", "libcudart.so.12")
"""The newest first."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU.

    Attributes:
        name: the product's name, from the driver.
        memory: in bytes.
        capability: `sm89` of compute capability 8.9.
    """

    name: str
    memory: int
    capability: str


@dataclass(frozen=True, kw_only=True)
class Driver:
    """The NVIDIA driver.

    Attributes:
        version: such as `580.95.05`; `None` if NVML does not tell.
        cuda: the newest CUDA version that it runs, such as `13.0`.
        gpus: in the driver's order, without those that `CUDA_VISIBLE_DEVICES` hides.
        fault: why the GPUs cannot be listed; `None` if they can be, even if there are none.
    """

    version: str | None
    cuda: str
    gpus: tuple[Gpu, ...]
    fault: str | None = None


def find_driver() -> Driver | None:
    """The driver; `None` if its library is not installed."""
    cuda = _load(CUDA)
    if cuda is None:
        return None
    version = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    status = cuda.cuInit(0)
    return Driver(
        version=_read_driver_version(),
        cuda=cuda_version(version.value),
        gpus=() if status else tuple(_list_gpus(cuda)),
        fault=f"cuInit says {_error_name(cuda, status)}" if status else None,
    )


def find_runtime() -> str | None:
    """Version of the CUDA runtime that programs find here, such as `13.0`; `None` if none is.

    It is looked for where the linker looks, and in NVIDIA's Python packages.
    """
    for name in RUNTIMES:
        for path in (name, *_find_packaged(name)):
            library = _load(path)
            version = ctypes.c_int()
            if library is not None and not library.cudaRuntimeGetVersion(ctypes.byref(version)):
                return cuda_version(version.value)
    return None


def cuda_version(number: int) -> str:
    """CUDA's version number in the usual form: 13010 is `13.1`."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _list_gpus(cuda: Any) -> Iterator[Gpu]:
    count = ctypes.c_int()
    if cuda.cuDeviceGetCount(ctypes.byref(count)):
        return
    for index in range(count.value):
        device, name, memory = (
            ctypes.c_int(),
            ctypes.create_string_buffer(NAME_BYTES),
            ctypes.c_size_t(),
        )
        cuda.cuDeviceGet(ctypes.byref(device), index)
        cuda.cuDeviceGetName(name, NAME_BYTES, device)
        cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        capability = "".join(str(_read_attribute(cuda, which, device)) for which in (MAJOR, MINOR))
        yield Gpu(name=name.value.decode(), memory=memory.value, capability=f"sm{capability}")


def _read_attribute(cuda: Any, which: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    cuda.cuDeviceGetAttribute(ctypes.byref(value), which, device)
    return value.value


def _error_name(cuda: Any, status: int) -> str:
    text = ctypes.c_char_p()
    cuda.cuGetErrorName(status, ctypes.byref(text))
    return text.value.decode() if text.value else f"error {status}"


def _read_driver_version() -> str | None:
    nvml = _load(NVML)
    text = ctypes.create_string_buffer(VERSION_BYTES)
    if nvml is None or nvml.nvmlInit_v2():
        return None
    status = nvml.nvmlSystemGetDriverVersion(text, VERSION_BYTES)
    nvml.nvmlShutdown()
    return None if status else text.value.decode()


def _find_packaged(name: str) -> list[str]:
    folder = Path(sysconfig.get_path("purelib")) / "nvidia"
    return [str(path) for path in sorted(folder.glob(f"*/lib/{name}"))]


def _load(name: str) -> Any:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def has_nvidia_gpu() -> bool:
    """Whether the NVIDIA driver is installed and names at least one GPU."""
    driver = find_driver()
    return driver is not None and bool(driver.gpus)
