"""ONNX Runtime's execution providers: which there are, and what each is told.

Importing this module loads nothing of ONNX Runtime.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from iblip.engines.tensorrt.profile import Shape
from iblip.export.errors import EngineError

logger = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[Shape, Shape, Shape]]
"""The min, opt and max shape of each input, by name, as `Profile.all_shapes` gives them."""

CPU_PROVIDER = "CPUExecutionProvider"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a session runs, and what it may keep.

    Attributes:
        kind: a key of `PROVIDERS`.
        device: the GPU's number, from 0.
        shapes: of the graph's inputs; TensorRT wants them for its profile.
        cache: a directory for engines and kernels that a provider compiles; `None` keeps none.

    Raises:
        EngineError: there is no such kind, or the device's number is negative.
    """

    kind: str = "onnxruntime"
    device: int = 0
    shapes: Shapes = field(default_factory=dict)
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.kind not in PROVIDERS:
            raise EngineError(f"{self.kind!r} is none of {', '.join(PROVIDERS)}")
        if self.device < 0:
            raise EngineError(f"device {self.device} is below 0; GPUs are counted from 0")

    @property
    def provider(self) -> Provider:
        """Of its kind."""
        return PROVIDERS[self.kind]

    @property
    def memory(self) -> str:
        """ONNX Runtime's name for where tensors may stay between runs: `cpu` or `cuda`."""
        return self.provider.memory


@dataclass(frozen=True, kw_only=True)
class Provider:
    """One row of `PROVIDERS`.

    Attributes:
        name: as ONNX Runtime spells it.
        memory: ONNX Runtime's name of the memory in which tensors may stay between runs; `cpu`
            where they come back to the host.
        options: what it is told, for a placement.
        behind: kinds whose providers take what this one does not, before the CPU.
        library: the file of `onnxruntime/capi` that it is in; `None` where it is always there.
        plugin: a module that brings it as a library to register; `None` where ONNX Runtime has it.
        install: what to do where ONNX Runtime or the module lacks it.
    """

    name: str
    memory: str
    options: Callable[[Placement], dict[str, str]]
    behind: tuple[str, ...] = ()
    library: str | None = None
    plugin: str | None = None
    install: str = ""


def _none(placement: Placement) -> dict[str, str]:
    return {}


def _cuda(placement: Placement) -> dict[str, str]:
    return {
        "device_id": str(placement.device),
        # What is asked for, not the next power of two: other sessions share the card.
        "arena_extend_strategy": "kSameAsRequested",
        # The other way to choose, EXHAUSTIVE, times every algorithm anew for every shape.
        "cudnn_conv_algo_search": "HEURISTIC",
        # A graph in float32 is verified in float32; TF32 would round its factors to 11 bits.
        "use_tf32": "0",
    }


def _tensorrt(placement: Placement) -> dict[str, str]:
    # With the flag off the network is strongly typed: the graph's own dtypes are the plan's.
    told = {"device_id": str(placement.device), "trt_fp16_enable": "0"}
    told |= _profile("trt_profile_{}_shapes", placement.shapes)
    if placement.cache is not None:
        told |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(placement.cache),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(placement.cache),
        }
    return told


def _tensorrt_rtx(placement: Placement) -> dict[str, str]:
    told = _profile("nv_profile_{}_shapes", placement.shapes)
    if placement.cache is not None:
        told["nv_runtime_cache_path"] = str(placement.cache)
    return told


def _profile(option: str, shapes: Shapes) -> dict[str, str]:
    """`name:1x24,other:1x3` for each of min, opt and max."""
    if not shapes:
        return {}
    return {
        option.format(bound): ",".join(
            f"{name}:{'x'.join(map(str, spans[place]))}" for name, spans in shapes.items()
        )
        for place, bound in enumerate(("min", "opt", "max"))
    }


_GPU_PACKAGE = (
    "Put `onnxruntime-gpu` in the place of `onnxruntime`: run `pip uninstall onnxruntime`, then "
    "`pip install 'iblip[gpu]'`."
)

PROVIDERS: Mapping[str, Provider] = {
    "onnxruntime": Provider(name=CPU_PROVIDER, memory="cpu", options=_none),
    "onnxruntime-cuda": Provider(
        name="CUDAExecutionProvider",
        memory="cuda",
        options=_cuda,
        library="libonnxruntime_providers_cuda.so",
        install=_GPU_PACKAGE,
    ),
    "onnxruntime-tensorrt": Provider(
        name="TensorrtExecutionProvider",
        memory="cuda",
        options=_tensorrt,
        behind=("onnxruntime-cuda",),
        library="libonnxruntime_providers_tensorrt.so",
        install=_GPU_PACKAGE,
    ),
    "onnxruntime-tensorrt-rtx": Provider(
        name="NvTensorRTRTXExecutionProvider",
        memory="cpu",  # a plug-in's memory has no name to bind by
        options=_tensorrt_rtx,
        plugin="onnxruntime_ep_nv_tensorrt_rtx",
        install="Run `pip install 'iblip[onnxruntime-tensorrt-rtx]'`.",
    ),
}
"""Engine kind to what of ONNX Runtime runs it."""

CPU = Placement()
"""On this process's cores."""
