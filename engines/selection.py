"""Which engine runs the components, and why."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial

from iblip.engines.hardware.nvidia import has_nvidia_gpu
from iblip.export.errors import OptionError

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class EngineKind:
    """One row of `KINDS`.

    Attributes:
        title: its name in prose.
        obstacle: what keeps this machine from building it, and what to do; `None` if nothing.
        running_obstacle: what keeps this machine from running it; `None` if nothing.
        reason: said when it is chosen.
        plans: whether plans are built for it; else it runs the graphs themselves.
        gpu: whether it runs on a GPU; else on the CPU.
        proven: whether its answers have been compared on its own device; `auto` takes no other.
    """

    title: str
    obstacle: Callable[[], str | None]
    running_obstacle: Callable[[], str | None]
    reason: str
    plans: bool = False
    gpu: bool = True
    proven: bool = False


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """The engine to build for.

    Attributes:
        kind: a key of `KINDS`.
        reason: one sentence for the user.
    """

    kind: str
    reason: str


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _onnxruntime_obstacle() -> str | None:
    if _installed("onnxruntime"):
        return None
    return "ONNX Runtime is not installed. Run `pip install 'iblip[cpu]'`."


def _tensorrt_obstacle() -> str | None:
    if not _installed("tensorrt"):
        return "TensorRT is not installed. Run `pip install 'iblip[gpu]'` on a machine with a GPU."
    if not has_nvidia_gpu():
        return (
            "no NVIDIA driver was found, and TensorRT builds on the GPU that the plan is for. "
            "Use --engine onnxruntime here, or build on that machine."
        )
    return None


def _tensorrt_rtx_obstacle() -> str | None:
    if _installed("tensorrt_rtx") or _installed("tensorrt_rtx_bindings"):
        return None
    return "TensorRT-RTX is not installed. Run `pip install 'iblip[tensorrt-rtx]'`."


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
        reason="ONNX Runtime was asked for.",
        gpu=False,
        proven=True,
    ),
    "onnxruntime-cuda": EngineKind(
        title="ONNX Runtime on CUDA",
        obstacle=_onnxruntime_obstacle,
        running_obstacle=partial(_provider_obstacle, "onnxruntime-cuda"),
        reason="ONNX Runtime's CUDA provider was asked for.",
    ),
    "onnxruntime-tensorrt": EngineKind(
        title="ONNX Runtime on TensorRT",
        obstacle=_onnxruntime_obstacle,
        running_obstacle=partial(_provider_obstacle, "onnxruntime-tensorrt"),
        reason="ONNX Runtime's TensorRT provider was asked for: it builds plans when it starts.",
    ),
    "onnxruntime-tensorrt-rtx": EngineKind(
        title="ONNX Runtime on TensorRT-RTX",
        obstacle=_onnxruntime_obstacle,
        running_obstacle=partial(_provider_obstacle, "onnxruntime-tensorrt-rtx"),
        reason="ONNX Runtime's TensorRT-RTX provider was asked for: it builds plans when it "
        "starts.",
    ),
    "tensorrt": EngineKind(
        title="TensorRT",
        obstacle=_tensorrt_obstacle,
        running_obstacle=partial(_plan_obstacle, "tensorrt"),
        reason="TensorRT was asked for: plans for this machine's GPU and TensorRT version.",
        plans=True,
    ),
    "tensorrt-rtx": EngineKind(
        title="TensorRT-RTX",
        obstacle=_tensorrt_rtx_obstacle,
        running_obstacle=partial(_plan_obstacle, "tensorrt-rtx"),
        reason="TensorRT-RTX was asked for: plans are built ahead of time, without a GPU, and run "
        "where the TensorRT-RTX runtime is.",
        plans=True,
    ),
}
"""Every engine that a component can be built for."""


def runs_on_gpu(kind: str) -> bool:
    """Whether an engine runs on the GPU whose number it is given when it is opened.

    Args:
        kind: an `EngineRecord.kind`. vLLM's is none such: it takes what GPUs it finds.
    """
    return kind in KINDS and KINDS[kind].gpu


PREFERRED = ("onnxruntime-cuda", "onnxruntime")
"""What `auto` looks for, in this order, among what is proven and runs here."""

BESIDE: Mapping[str, str] = {
    "onnxruntime-cuda": "onnxruntime-cuda",
    "onnxruntime-tensorrt": "onnxruntime-cuda",
}
"""What ONNX Runtime runs the language model on where the components have these engines; else on
the CPU. `batched_decoder` has operators of ONNX Runtime's own, so TensorRT never takes it."""

HALVES = ("fp16", "bf16", "lavis")
"""Precisions of a language model whose attention the CUDA provider runs; in float32 it has none."""


def language_model_kind(requested: str, components: str, precision: str) -> str:
    """The engine kind of the language model: the one asked for, or ONNX Runtime on their device.

    Args:
        requested: `--llm-engine`: `onnxruntime`, `onnxruntime-cuda` or `vllm`.
        components: the kind of engine of vision encoder and Q-Former.
        precision: of the language model; in one that CUDA does not run it stays on the CPU.
    """
    if requested != "onnxruntime" or precision not in HALVES:
        return requested
    return BESIDE.get(components, requested)


def choose_engine(requested: str = AUTO, targets: Sequence[str] = ()) -> EngineChoice:
    """The engine for `requested`: a key of `KINDS`, or `auto`.

    `auto` takes the first of `PREFERRED` that is proven and runs here (decision 0017). An engine
    that is asked for by name is built wherever its parts are, and need not run here: then the
    reason says why not.

    Args:
        requested: `--engine`.
        targets: `--target`, each a GPU family such as `sm89`; empty is this machine's GPU.

    Raises:
        OptionError: an unknown name, an engine that this machine cannot build, or a target that
            it does not build for, with what to do.
        EngineError: its library is installed but does not load.
    """
    choice = _automatic() if requested == AUTO else _requested(requested)
    if KINDS[choice.kind].plans:
        from iblip.engines.tensorrt.libraries import find_library

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
    elsewhere = kind.running_obstacle()
    note = f" It is built here, but cannot run here: {elsewhere}" if elsewhere else ""
    return EngineChoice(kind=requested, reason=kind.reason + note)


def _automatic() -> EngineChoice:
    obstacles = {kind: KINDS[kind].running_obstacle() for kind in PREFERRED if KINDS[kind].proven}
    found = next((kind for kind, obstacle in obstacles.items() if obstacle is None), None)
    if found is None:
        why = " ".join(obstacle for obstacle in obstacles.values() if obstacle)
        raise OptionError(f"--engine auto finds nothing that runs here: {why}")
    if not has_nvidia_gpu():
        why = "This machine has no NVIDIA driver, so the components run on ONNX Runtime's CPU code."
        return EngineChoice(kind=found, reason=why)
    others = [kind for kind, row in KINDS.items() if not row.proven and not row.running_obstacle()]
    why = f"{KINDS[found].title} is what has been compared with transformers (docs/evidence.md)."
    if others:
        why += f" This machine has a GPU; these would run on it: --engine {', '.join(others)}."
    return EngineChoice(kind=found, reason=why)
