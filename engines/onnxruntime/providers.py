"""The table of ONNX Runtime's execution providers, and the options that each is given.

Importing this module loads nothing of ONNX Runtime.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from iblip.engines.tensorrt.profile import Shape
from iblip.export.errors import EngineError
from iblip.export.system.installing import install_command

logger = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[Shape, Shape, Shape]]
"""The min, opt and max shape of each input, by name, as `Profile.all_shapes` gives them."""

CPU_PROVIDER = "CPUExecutionProvider"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a session runs, and where it may keep what it compiles.

    Attributes:
        kind: a key of `PROVIDERS`.
        device: the GPU's number, from 0.
        shapes: of the graph's inputs; TensorRT needs them for its profile.
        cache: a directory for engines and kernels that a provider compiles; `None` keeps none.
        captures: whether the CUDA provider may capture runs as CUDA graphs.

    Raises:
        EngineError: there is no such kind, or the device's number is negative.
    """

    kind: str = "onnxruntime"
    device: int = 0
    shapes: Shapes = field(default_factory=dict)
    cache: Path | None = None
    captures: bool = False

    def __post_init__(self) -> None:
        if self.kind not in PROVIDERS:
            raise EngineError(
                f"the provider is {self.kind!r}; expected one of {', '.join(PROVIDERS)}"
            )
        if self.device < 0:
            raise EngineError(f"device {self.device} is below 0; GPUs are counted from 0")

    @property
    def provider(self) -> Provider:
        """The row of `PROVIDERS` of its kind."""
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
        options: returns the provider's options for a placement.
        behind: kinds whose providers run what this one cannot, before the CPU does.
        library: the file of `onnxruntime/capi` that it is in; `None` where it is always there.
        loads: libraries that it loads by these names when it first needs them, not when it starts.
        plugin: a module that brings it as a library to register; `None` where ONNX Runtime has it.
        install: what to do where ONNX Runtime or the module lacks it.
    """

    name: str
    memory: str
    options: Callable[[Placement], dict[str, str]]
    behind: tuple[str, ...] = ()
    library: str | None = None
    loads: tuple[str, ...] = ()
    plugin: str | None = None
    install: str = ""


def _no_options(placement: Placement) -> dict[str, str]:
    return {}


def _cuda_options(placement: Placement) -> dict[str, str]:
    graphs = {"enable_cuda_graph": "1"} if placement.captures else {}
    return graphs | {
        "device_id": str(placement.device),
        # What is requested and no more is never enough for a longer prompt: every new length would
        # keep memory of its own. Weights are not in the arena (`session.settle_memory`).
        "arena_extend_strategy": "kNextPowerOfTwo",
        # The alternative, EXHAUSTIVE, times every algorithm again for every shape.
        "cudnn_conv_algo_search": "HEURISTIC",
        # Flash or memory-efficient attention: cuDNN's takes more launches, and plans each shape.
        "sdpa_kernel": "3",
        # A graph in float32 is verified in float32; TF32 would round its factors to 11 bits.
        "use_tf32": "0",
    }


def _tensorrt_options(placement: Placement) -> dict[str, str]:
    # With the flag off the network is strongly typed: the graph's own dtypes are the plan's.
    options = {"device_id": str(placement.device), "trt_fp16_enable": "0"}
    options |= _profile_options("trt_profile_{}_shapes", placement.shapes)
    if placement.cache is not None:
        options |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(placement.cache),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(placement.cache),
        }
    return options


def _tensorrt_rtx_options(placement: Placement) -> dict[str, str]:
    options = _profile_options("nv_profile_{}_shapes", placement.shapes)
    if placement.cache is not None:
        options["nv_runtime_cache_path"] = str(placement.cache)
    return options


def _profile_options(option: str, shapes: Shapes) -> dict[str, str]:
    """`name:1x24,other:1x3` for each of min, opt and max."""
    if not shapes:
        return {}
    return {
        option.format(bound): ",".join(
            f"{name}:{'x'.join(map(str, spans[place]))}" for name, spans in shapes.items()
        )
        for place, bound in enumerate(("min", "opt", "max"))
    }


CUDNN = "libcudnn.so.9"
"""cuDNN, which ONNX Runtime's CUDA provider loads when it makes a session (PR 29252 of ONNX
Runtime). Without it the session opens, and the first convolution or softmax fails."""

_GPU_PACKAGE = (
    "Put `onnxruntime-gpu` in the place of `onnxruntime`: run `pip uninstall onnxruntime`, then "
    f"`{install_command('gpu')}`."
)

PROVIDERS: Mapping[str, Provider] = {
    "onnxruntime": Provider(name=CPU_PROVIDER, memory="cpu", options=_no_options),
    "onnxruntime-cuda": Provider(
        name="CUDAExecutionProvider",
        memory="cuda",
        options=_cuda_options,
        library="libonnxruntime_providers_cuda.so",
        loads=(CUDNN,),
        install=_GPU_PACKAGE,
    ),
    "onnxruntime-tensorrt": Provider(
        name="TensorrtExecutionProvider",
        memory="cuda",
        options=_tensorrt_options,
        behind=("onnxruntime-cuda",),
        library="libonnxruntime_providers_tensorrt.so",
        loads=(CUDNN,),
        install=_GPU_PACKAGE,
    ),
    "onnxruntime-tensorrt-rtx": Provider(
        name="NvTensorRTRTXExecutionProvider",
        memory="cpu",  # a plug-in's memory has no name to bind by
        options=_tensorrt_rtx_options,
        plugin="onnxruntime_ep_nv_tensorrt_rtx",
        install=f"Run `{install_command('onnxruntime-tensorrt-rtx')}`.",
    ),
}
"""Engine kind to the execution provider that runs it."""

CPU = Placement()
"""Runs on the cores that this process may use."""
