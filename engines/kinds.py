"""The table of engine kinds: what runs a component, and what keeps this machine from it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from iblip.engines.hardware.nvidia import has_nvidia_gpu
from iblip.export.system.installing import install_command


@dataclass(frozen=True, kw_only=True)
class EngineKind:
    """One row of `KINDS`.

    Attributes:
        title: its name in prose.
        obstacle: returns what keeps this machine from building it, and what to do; `None` if
            nothing does.
        running_obstacle: returns what keeps this machine from running it; `None` if nothing does.
        reason: the sentence for the user if it is requested by name.
        plans: whether plans are built for it; otherwise it runs the graphs themselves.
        gpu: whether it runs on a GPU; otherwise on the CPU.
        proven: whether the project has compared its answers on its own device. `auto` takes only
            such, and what a record of `iblip prove` has shown on this machine (`engines.proofs`).
    """

    title: str
    obstacle: Callable[[], str | None]
    running_obstacle: Callable[[], str | None]
    reason: str
    plans: bool = False
    gpu: bool = True
    proven: bool = False


OPENVINO = "openvino"
"""It also runs language models, whose attention it leaves to ONNX Runtime (decision 0052)."""


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _onnxruntime_obstacle() -> str | None:
    if _is_installed("onnxruntime"):
        return None
    return f"ONNX Runtime is not installed. Run `{install_command('cpu')}`."


def _openvino_obstacle() -> str | None:
    if _is_installed(OPENVINO):
        return _onnxruntime_obstacle()
    return f"OpenVINO is not installed. Run `{install_command(OPENVINO)}`."


def _tensorrt_obstacle() -> str | None:
    if not _is_installed("tensorrt"):
        return f"TensorRT is not installed. Run `{install_command('tensorrt')}` beside a GPU."
    if not has_nvidia_gpu():
        return (
            "no NVIDIA driver was found, and TensorRT builds on the GPU that the plan is for. "
            "Use --engine onnxruntime here, or build on that machine."
        )
    return None


def _tensorrt_rtx_obstacle() -> str | None:
    if _is_installed("tensorrt_rtx") or _is_installed("tensorrt_rtx_bindings"):
        return None
    return f"TensorRT-RTX is not installed. Run `{install_command('tensorrt-rtx')}`."


def _plan_obstacle(kind: str) -> str | None:
    return KINDS[kind].obstacle() or (None if has_nvidia_gpu() else "no NVIDIA driver was found.")


def _provider_obstacle(kind: str) -> str | None:
    from iblip.engines.onnxruntime.probing import provider_obstacle

    return provider_obstacle(kind)


KINDS: Mapping[str, EngineKind] = {
    "onnxruntime": EngineKind(
        title="ONNX Runtime",
        obstacle=_onnxruntime_obstacle,
        running_obstacle=_onnxruntime_obstacle,
        reason="ONNX Runtime was requested.",
        gpu=False,
        proven=True,
    ),
    OPENVINO: EngineKind(
        title="OpenVINO",
        obstacle=_openvino_obstacle,
        running_obstacle=_openvino_obstacle,
        reason="OpenVINO was requested.",
        gpu=False,
        proven=True,
    ),
    "onnxruntime-cuda": EngineKind(
        title="ONNX Runtime on CUDA",
        obstacle=_onnxruntime_obstacle,
        running_obstacle=partial(_provider_obstacle, "onnxruntime-cuda"),
        reason="ONNX Runtime's CUDA provider was requested.",
    ),
    "onnxruntime-tensorrt": EngineKind(
        title="ONNX Runtime on TensorRT",
        obstacle=_onnxruntime_obstacle,
        running_obstacle=partial(_provider_obstacle, "onnxruntime-tensorrt"),
        reason="ONNX Runtime's TensorRT provider was requested: it builds plans when it starts.",
    ),
    "onnxruntime-tensorrt-rtx": EngineKind(
        title="ONNX Runtime on TensorRT-RTX",
        obstacle=_onnxruntime_obstacle,
        running_obstacle=partial(_provider_obstacle, "onnxruntime-tensorrt-rtx"),
        reason="ONNX Runtime's TensorRT-RTX provider was requested: it builds plans when it "
        "starts.",
    ),
    "tensorrt": EngineKind(
        title="TensorRT",
        obstacle=_tensorrt_obstacle,
        running_obstacle=partial(_plan_obstacle, "tensorrt"),
        reason="TensorRT was requested: plans for this machine's GPU and TensorRT version.",
        plans=True,
    ),
    "tensorrt-rtx": EngineKind(
        title="TensorRT-RTX",
        obstacle=_tensorrt_rtx_obstacle,
        running_obstacle=partial(_plan_obstacle, "tensorrt-rtx"),
        reason="TensorRT-RTX was requested: plans are built ahead of time, without a GPU, and run "
        "where the TensorRT-RTX runtime is.",
        plans=True,
    ),
}
"""Every engine that a component can be built for."""


def runs_on_gpu(kind: str) -> bool:
    """Whether an engine runs on the GPU whose number it is given when it is opened.

    Args:
        kind: an `EngineRecord.kind`. `False` for vLLM, which chooses its GPUs itself.
    """
    return kind in KINDS and KINDS[kind].gpu
