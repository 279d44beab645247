"""Finds out what libraries and servers are installed, by loading them only where necessary.

What might crash this process, or change what it loads later, is loaded in a process of its own.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from iblip.engines.kinds import KINDS
from iblip.engines.tensorrt.libraries import SOURCES, find_library
from iblip.export.errors import EngineError, ServingError
from iblip.serving.server.installation import find_triton
from iblip.serving.server.wall.library import NoLibraryError, classification_library

LOADED: Mapping[str, str] = {
    "onnxruntime": "onnxruntime",
    "onnxruntime-gpu": "onnxruntime",
    "torchvision": "torchvision",
    "tokenizers": "tokenizers",
}
"""Package to the module that is loaded to see whether it works. torchvision is not needed, but if
it does not fit torch, transformers' InstructBLIP does not load."""

LOAD_TIMEOUT_S = 120.0
"""Seconds that a package may take to load."""


@dataclass(frozen=True, kw_only=True)
class TensorRt:
    """A TensorRT library of one kind.

    Attributes:
        version: `None` where it does not load.
        targets: GPU families that it builds for without a GPU; empty where it needs one.
        fault: why it does not load; `None` where it does.
    """

    version: str | None = None
    targets: tuple[str, ...] = ()
    fault: str | None = None


@dataclass(frozen=True, kw_only=True)
class Triton:
    """The server that `iblip serve` would start.

    Attributes:
        origin: where it comes from, in words.
        version: `None` where it is not known.
        backends: names in its folder of backends.
        wheel: whether it is the one in `nvidia-pytriton`.
        unprotected: why a request can still end it; `None` if none can that is known.
    """

    origin: str
    version: str | None
    backends: tuple[str, ...]
    wheel: bool
    unprotected: str | None = None


@dataclass(frozen=True, kw_only=True)
class Vllm:
    """vLLM's environment.

    Attributes:
        python: its interpreter; `None` where there is none.
        version: of vLLM; `None` where the environment has none.
        advice: what to do where there is none.
    """

    python: str | None = None
    version: str | None = None
    advice: str | None = None


def tensorrt_libraries() -> dict[str, TensorRt]:
    """Each installed kind of TensorRT, loaded; Python's bindings take precedence."""
    libraries = {}
    linked = linked_tensorrt()
    if linked is not None:  # as in NVIDIA's container, without Python's bindings
        libraries["tensorrt"] = TensorRt(version=linked)
    for kind, source in SOURCES.items():
        if not any(_is_installed(module) for module in source.modules):
            continue
        try:
            library = find_library(kind)
        except EngineError as error:
            libraries[kind] = TensorRt(fault=str(error))
        else:
            libraries[kind] = TensorRt(version=library.version, targets=library.targets)
    return libraries


def linked_tensorrt() -> str | None:
    """The version of the TensorRT that the dynamic linker finds, as Triton's backend would."""
    for name in ("libnvinfer.so.11", "libnvinfer.so.10"):
        try:
            return infer_version(ctypes.CDLL(name).getInferLibVersion())
        except (OSError, AttributeError):
            continue
    return None


def infer_version(number: int) -> str:
    """The number of `getInferLibVersion` (TensorRT 10 and later) as a version: 110100 is
    `11.1.0`."""
    return f"{number // 10000}.{number % 10000 // 100}.{number % 100}"


def engine_obstacles() -> dict[str, str | None]:
    """What keeps each kind of engine from running in this Python; `None` if nothing does."""
    return {kind: row.running_obstacle() for kind, row in KINDS.items()}


def onnxruntime_providers() -> tuple[str, ...] | None:
    """The execution providers that ONNX Runtime offers, whether or not their libraries load."""
    try:
        import onnxruntime
    except ImportError:
        return None
    return tuple(onnxruntime.get_available_providers())


def torch_cuda() -> str | None:
    """The CUDA that torch was built for, read without loading torch."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    version = Path(spec.origin).with_name("version.py")
    text = version.read_text(encoding="utf-8") if version.is_file() else ""
    match = re.search(r"^cuda\b.*=\s*'([\d.]+)'", text, re.MULTILINE)
    return match.group(1) if match else None


def load_faults(packages: Mapping[str, str]) -> dict[str, str]:
    """The installed packages of `LOADED` that do not load, each with the last line of its error."""
    faults = {}
    for package, module in LOADED.items():
        if package in packages:
            try:
                done = subprocess.run(
                    [sys.executable, "-c", f"import {module}"],
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=LOAD_TIMEOUT_S,
                )
            except subprocess.TimeoutExpired:
                faults[package] = f"it takes longer than {LOAD_TIMEOUT_S:.0f} seconds"
                continue
            if done.returncode:
                lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
                faults[package] = lines[-1]
    return faults


def find_server() -> Triton | None:
    """The Triton that `iblip serve` would start; `None` where there is none."""
    try:
        installation = find_triton()
    except ServingError:
        return None
    return Triton(
        origin=installation.origin,
        version=installation.version,
        backends=installation.backend_names,
        wheel=installation.python_stub is not None,
        unprotected=_unprotected() if installation.walled else None,
    )


def _unprotected() -> str | None:
    try:
        classification_library()
    except NoLibraryError as error:
        return error.reason
    return None


def find_vllm() -> Vllm:
    """vLLM's environment, and the version in its package records."""
    from iblip.engines.language_model.vllm.environment import PACKAGES, find_python

    try:
        python = find_python()
    except EngineError as error:
        return Vllm(advice=str(error).partition(". ")[2])
    names = [package.replace("-", "_") for package in PACKAGES]
    records = [
        path.name.removesuffix(".dist-info").rpartition("-")
        for path in python.parents[1].glob("lib/python*/site-packages/vllm*.dist-info")
    ]
    versions = [version for name, _, version in records if name in names]
    return Vllm(python=str(python), version=next(iter(versions), None))


def glibc() -> str | None:
    """The version of the C library, if it is glibc."""
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").removeprefix("glibc ") or None
    except (AttributeError, OSError, ValueError):
        return None


def _is_installed(module: str) -> bool:
    return find_spec(module.partition(".")[0]) is not None
