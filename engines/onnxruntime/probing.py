"""What keeps an execution provider of ONNX Runtime from running on this machine.

ONNX Runtime leaves out a provider that it cannot load and goes on without it, on the CPU, with only
a line on standard error. So the libraries that a provider needs are looked for before a session is
opened.
"""

from __future__ import annotations

import ctypes
import importlib
import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from iblip.engines.onnxruntime.providers import CPU_PROVIDER, PROVIDERS, Provider
from iblip.export.errors import EngineError
from iblip.export.system.installing import install_command


def provider_obstacle(kind: str) -> str | None:
    """What keeps a kind's provider from running here, and what to do; `None` if nothing does.

    Loads ONNX Runtime and the provider's libraries.

    Args:
        kind: a key of `PROVIDERS`.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        return f"ONNX Runtime cannot be loaded ({error}). Run `{install_command('cpu')}`."
    provider = PROVIDERS[kind]
    if provider.plugin is not None:
        fault = _plugin_fault(ort, provider)
    elif provider.name not in ort.get_available_providers():
        has = ", ".join(ort.get_available_providers())
        fault = f"this ONNX Runtime has no {provider.name}; it has {has}. {provider.install}"
    else:
        fault = _library_fault(ort, provider)
    if fault is None and provider.name != CPU_PROVIDER:
        from iblip.engines.hardware.nvidia import has_nvidia_gpu

        fault = None if has_nvidia_gpu() else "no NVIDIA driver with a GPU was found."
    if fault is None and provider.memory == "cuda":
        fault = _bindings_fault()
    return fault


def register(ort: Any, provider: Provider) -> None:
    """Registers a provider that comes as a plug-in with ONNX Runtime, once per process.

    Raises:
        EngineError: its package is not installed, or its library does not load.
    """
    assert provider.plugin is not None
    if any(device.ep_name == provider.name for device in ort.get_ep_devices()):
        return
    try:
        plugin = importlib.import_module(provider.plugin)
        _preload(Path(plugin.__file__ or "").parent)
        ort.register_execution_provider_library(provider.name, plugin.get_library_path())
    except ImportError as error:
        raise EngineError(f"{provider.name} is not installed ({error}). {provider.install}") from (
            error
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise EngineError(f"{provider.name} cannot be loaded ({error}).") from error


def _bindings_fault() -> str | None:
    """Why the language model could not allocate its slots in the GPU's memory, if so."""
    from iblip.engines.cuda.device import load_runtime

    try:
        load_runtime()
    except EngineError as error:
        return str(error)
    return None


def _plugin_fault(ort: Any, provider: Provider) -> str | None:
    try:
        register(ort, provider)
    except EngineError as error:
        return str(error)
    return None


def _preload(directory: Path) -> None:
    """Loads the CUDA runtime that a plug-in carries: its library looks it up by its short name."""
    for path in sorted(directory.glob("libcudart.so.*")):
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)


def _library_fault(ort: Any, provider: Provider) -> str | None:
    """The error from loading the provider's library as ONNX Runtime will load it, if any."""
    if provider.library is None:
        return None
    preload_cuda(ort)
    folder = Path(ort.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / provider.library))
        for name in provider.loads:
            ctypes.CDLL(name)
    except OSError as error:
        return f"{provider.name} cannot be loaded ({error}). {_find_remedy(str(error))}"
    return None


def preload_cuda(ort: Any) -> None:
    """Loads CUDA's and cuDNN's libraries from NVIDIA's Python packages, if they are installed."""
    if hasattr(ort, "preload_dlls"):
        with redirect_stdout(io.StringIO()):  # it prints what it does not find
            ort.preload_dlls()


REMEDIES: Mapping[str, str] = {
    "libcuda.so": "It belongs to the NVIDIA driver, which this machine does not have.",
    "libnvinfer": "It belongs to TensorRT: install the version in its name.",
    "libnvonnxparser": "It belongs to TensorRT: install the version in its name.",
    "lib": f"Run `{install_command('gpu')}`, which has CUDA's libraries and cuDNN.",
}
"""Beginning of a missing library's name to what to do; the first row that matches applies."""


def _find_remedy(error: str) -> str:
    return next((text for start, text in REMEDIES.items() if error.startswith(start)), "")
