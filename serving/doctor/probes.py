"""Asks libraries what they are, by loading them where nothing less tells.

What might bring this process down, or change what it loads later, is loaded in one of its own.
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

from iblip.engines.hardware.containers import WHEELS
from iblip.engines.kinds import KINDS
from iblip.engines.tensorrt.libraries import SOURCES, find_library
from iblip.export.errors import EngineError, ServingError
from iblip.serving.server.installation import find_triton

LOADED: Mapping[str, str] = {
    "onnxruntime": "onnxruntime",
    "onnxruntime-gpu": "onnxruntime",
    "torchvision": "torchvision",
    "tokenizers": "tokenizers",
}
"""Package to the module that is loaded to see whether it works. torchvision is not needed; where it
does not fit torch, transformers' InstructBLIP does not load."""

PATIENCE_S = 120.0
"""How long a package may take to load."""


@dataclass(frozen=True, kw_only=True)
class TensorRt:
    """A TensorRT library of one kind.

    Attributes:
        version: of it; `None` where it does not load.
        targets: GPU families that it builds for without one; empty where it needs it.
        fault: why it does not load; `None` where it does.
    """

    version: str | None = None
    targets: tuple[str, ...] = ()
    fault: str | None = None


@dataclass(frozen=True, kw_only=True)
class Triton:
    """The server that `iblip serve` would start.

    Attributes:
        origin: where it is from, in words.
        version: `None` where it does not say.
        backends: what is in its folder of backends.
        wheel: whether it is the one of `nvidia-pytriton`.
    """

    origin: str
    version: str | None
    backends: tuple[str, ...]
    wheel: bool


@dataclass(frozen=True, kw_only=True)
class Vllm:
    """vLLM's environment.

    Attributes:
        python: its interpreter; `None` where there is none.
        version: of vLLM; `None` where it is not in it.
        advice: what to do where there is none.
    """

    python: str | None = None
    version: str | None = None
    advice: str | None = None


def tensorrt_libraries() -> dict[str, TensorRt]:
    """Each kind of TensorRT that is installed, loaded; Python's bindings go first."""
    found = {}
    linked = linked_tensorrt()
    if linked is not None:  # as in NVIDIA's container, without Python's bindings
        found["tensorrt"] = TensorRt(version=linked)
    for kind, source in SOURCES.items():
        if not any(_installed(module) for module in source.modules):
            continue
        try:
            library = find_library(kind)
        except EngineError as error:
            found[kind] = TensorRt(fault=str(error))
        else:
            found[kind] = TensorRt(version=library.version, targets=library.targets)
    return found


def linked_tensorrt() -> str | None:
    """Version of the TensorRT that the dynamic linker finds, which Triton's backend would load."""
    for name in ("libnvinfer.so.11", "libnvinfer.so.10"):
        try:
            return infer_version(ctypes.CDLL(name).getInferLibVersion())
        except (OSError, AttributeError):
            continue
    return None


def infer_version(number: int) -> str:
    """The number of `getInferLibVersion` as people write it, from TensorRT 10 on: 110100 is
    `11.1.0`."""
    return f"{number // 10000}.{number % 10000 // 100}.{number % 100}"


def engine_obstacles() -> dict[str, str | None]:
    """Of each kind of engine, what keeps it from running in this Python."""
    return {kind: row.running_obstacle() for kind, row in KINDS.items()}


def onnxruntime_providers() -> tuple[str, ...] | None:
    """The execution providers that ONNX Runtime offers, whether or not their libraries load."""
    try:
        import onnxruntime
    except ImportError:
        return None
    return tuple(onnxruntime.get_available_providers())


def torch_cuda() -> str | None:
    """The CUDA that torch was made for, read without loading it."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    version = Path(spec.origin).with_name("version.py")
    text = version.read_text(encoding="utf-8") if version.is_file() else ""
    found = re.search(r"^cuda\b.*=\s*'([\d.]+)'", text, re.MULTILINE)
    return found.group(1) if found else None


def load_faults(packages: Mapping[str, str]) -> dict[str, str]:
    """Of the installed packages of `LOADED`, those that do not load, and the last line of why."""
    faults = {}
    for package, module in LOADED.items():
        if package in packages:
            try:
                done = subprocess.run(
                    [sys.executable, "-c", f"import {module}"],
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=PATIENCE_S,
                )
            except subprocess.TimeoutExpired:
                faults[package] = f"it takes longer than {PATIENCE_S:.0f} seconds"
                continue
            if done.returncode:
                said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
                faults[package] = said[-1]
    return faults


def find_server(packages: Mapping[str, str]) -> Triton | None:
    """The Triton that would be started; `None` where there is none."""
    try:
        found = find_triton()
    except ServingError:
        return None
    home = found.binary.parents[1]
    wheel = found.python_stub is not None
    return Triton(
        origin=found.origin,
        version=WHEELS.get(packages.get("nvidia-pytriton", "")) if wheel else _says(home),
        backends=found.backend_names,
        wheel=wheel,
    )


def find_vllm() -> Vllm:
    """vLLM's environment, and what is in it by its own records."""
    from iblip.engines.language_model.vllm.environment import PACKAGES, find_python

    try:
        python = find_python()
    except EngineError as error:
        return Vllm(advice=str(error).partition(". ")[2])
    spelt = [package.replace("-", "_") for package in PACKAGES]
    records = [
        path.name.removesuffix(".dist-info").rpartition("-")
        for path in python.parents[1].glob("lib/python*/site-packages/vllm*.dist-info")
    ]
    versions = [version for name, _, version in records if name in spelt]
    return Vllm(python=str(python), version=next(iter(versions), None))


def glibc() -> str | None:
    """Version of the C library, where that is glibc."""
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").removeprefix("glibc ") or None
    except (AttributeError, OSError, ValueError):
        return None


def _says(home: Path) -> str | None:
    """The version that a container's Triton has beside it."""
    record = home / "TRITON_VERSION"
    return record.read_text(encoding="utf-8").strip() if record.is_file() else None


def _installed(module: str) -> bool:
    return find_spec(module.partition(".")[0]) is not None
