"""Which engine runs the components, and why."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from export.errors import OptionError

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class EngineKind:
    """One row of `KINDS`.

    Attributes:
        title: its name in prose.
        obstacle: what keeps this machine from building it, and what to do; `None` if nothing.
        reason: said when it is chosen.
    """

    title: str
    obstacle: Callable[[], str | None]
    reason: str


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """The engine to build for.

    Attributes:
        kind: a key of `KINDS`.
        reason: one sentence for the user.
    """

    kind: str
    reason: str


def nvidia_driver() -> bool:
    """Whether the NVIDIA driver's library can be loaded and names at least one device."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if hasattr(ctypes, "windll") else "libcuda.so.1")
        count = ctypes.c_int(0)
        failed = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    except OSError:
        return False
    return not failed and count.value > 0


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _onnxruntime_obstacle() -> str | None:
    if _installed("onnxruntime"):
        return None
    return "ONNX Runtime is not installed. Run `pip install 'iblip[cpu]'`."


def _tensorrt_obstacle() -> str | None:
    if not _installed("tensorrt"):
        return "TensorRT is not installed. Run `pip install 'iblip[gpu]'` on a machine with a GPU."
    if not nvidia_driver():
        return (
            "no NVIDIA driver was found, and TensorRT builds on the GPU that the plan is for. "
            "Use --engine onnxruntime here, or build on that machine."
        )
    return None


def _tensorrt_rtx_obstacle() -> str | None:
    if _installed("tensorrt_rtx") or _installed("tensorrt_rtx_bindings"):
        return None
    return "TensorRT-RTX is not installed. Run `pip install 'iblip[tensorrt-rtx]'`."


KINDS: Mapping[str, EngineKind] = {
    "onnxruntime": EngineKind(
        title="ONNX Runtime",
        obstacle=_onnxruntime_obstacle,
        reason="ONNX Runtime was asked for.",
    ),
    "tensorrt": EngineKind(
        title="TensorRT",
        obstacle=_tensorrt_obstacle,
        reason="TensorRT was asked for: plans for this machine's GPU and TensorRT version.",
    ),
    "tensorrt-rtx": EngineKind(
        title="TensorRT-RTX",
        obstacle=_tensorrt_rtx_obstacle,
        reason="TensorRT-RTX was asked for: plans are built ahead of time, without a GPU, and run "
        "where the TensorRT-RTX runtime is.",
    ),
}
"""Every engine that a component can be built for."""


def choose_engine(requested: str = AUTO, targets: Sequence[str] = ()) -> EngineChoice:
    """The engine for `requested`: a key of `KINDS`, or `auto`.

    `auto` takes what can run in this process. That is ONNX Runtime in this version: a TensorRT
    plan runs only inside a server that has its TensorRT version, so it is built on request alone.

    Args:
        requested: `--engine`.
        targets: `--target`, each a GPU family such as `sm89`; empty is this machine's GPU.

    Raises:
        OptionError: an unknown name, an engine that this machine cannot build, or a target that
            it does not build for, with what to do.
        EngineError: its library is installed but does not load.
    """
    choice = _automatic() if requested == AUTO else _requested(requested)
    if choice.kind != "onnxruntime":
        from engines.tensorrt.libraries import find_library

        find_library(choice.kind).check_targets(targets)
    elif targets:
        raise OptionError(
            f"--target {targets[0]} is for plans that are built ahead of time, and --engine "
            f"{requested} builds none. Add --engine tensorrt-rtx, or leave --target out."
        )
    return choice


def _requested(requested: str) -> EngineChoice:
    if requested not in KINDS:
        near = get_close_matches(requested, [*KINDS, AUTO], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise OptionError(
            f"there is no engine {requested!r}.{hint} Engines: {', '.join([AUTO, *KINDS])}"
        )
    kind = KINDS[requested]
    obstacle = kind.obstacle()
    if obstacle:
        raise OptionError(f"--engine {requested} is not possible here: {obstacle}")
    return EngineChoice(kind=requested, reason=kind.reason)


def _automatic() -> EngineChoice:
    obstacle = KINDS["onnxruntime"].obstacle()
    if obstacle:
        raise OptionError(f"--engine auto finds nothing that runs here: {obstacle}")
    if not nvidia_driver():
        why = "This machine has no NVIDIA driver, so the components run on ONNX Runtime's CPU code."
    else:
        why = (
            "ONNX Runtime runs here and under Triton alike. This machine has an NVIDIA driver: "
            "--engine tensorrt builds plans for it where TensorRT is installed."
        )
    return EngineChoice(kind="onnxruntime", reason=why)
