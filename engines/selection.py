"""Which engine runs the components and the language model of a build, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from iblip.engines.hardware.nvidia import find_driver, has_nvidia_gpu
from iblip.engines.kinds import KINDS
from iblip.engines.precision_support import find_refusal
from iblip.engines.proofs import find_proof, is_stub, key_here
from iblip.export.errors import OptionError
from iblip.export.messages import did_you_mean
from iblip.export.quantisation.options import Quantisation

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """The engine to build for.

    Attributes:
        kind: a key of `KINDS`.
        reason: one sentence for the user.
    """

    kind: str
    reason: str


PREFERRED = ("onnxruntime-cuda", "onnxruntime")
"""The engines that `auto` tries, in this order; it takes the first that runs here and is proven, by
the project or by `iblip prove` on this machine."""

BESIDE: Mapping[str, str] = {
    "onnxruntime-cuda": "onnxruntime-cuda",
    "onnxruntime-tensorrt": "onnxruntime-cuda",
}
"""Engine of the components to ONNX Runtime's engine for the language model; without a row it is the
CPU's. `batched_decoder` contains operators of ONNX Runtime's own, so TensorRT never runs it."""


def language_model_kind(
    requested: str, components: str, precision: str, quantisation: Quantisation | None = None
) -> str:
    """The engine kind of the language model.

    ONNX Runtime runs it on the components' device if it can; other engines are taken as requested.

    Args:
        requested: `--llm-engine`: a key of `serving.builder.options.LLM_ENGINES`.
        components: the engine kind of vision encoder and Q-Former.
        precision: of the language model; it stays on the CPU in one that CUDA does not run.
        quantisation: of the language model, if any.
    """
    kind = BESIDE.get(components, requested)
    refused = find_refusal(kind, "language_model", precision, quantisation)
    return requested if requested != "onnxruntime" or refused else kind


OTHER_NAMES: Mapping[str, str] = {
    "trt": "tensorrt",
    "trt-rtx": "tensorrt-rtx",
    "rtx": "tensorrt-rtx",
    "ort": "onnxruntime",
    "onnx": "onnxruntime",
    "ov": "openvino",
    "cpu": "onnxruntime",
    "cuda": "onnxruntime-cuda",
    "gpu": "onnxruntime-cuda",
}
"""What people call engines elsewhere; a refusal suggests the name here."""


def choose_engine(
    requested: str = AUTO,
    targets: Sequence[str] = (),
    precision: Mapping[str, str] | None = None,
    llm_engine: str = "onnxruntime",
) -> EngineChoice:
    """The engine for `requested`: a key of `KINDS`, or `auto`.

    `auto` takes the first of `PREFERRED` that is proven and runs here (decision 0017). An engine
    that is requested by name is built wherever its libraries are installed, and need not run here:
    then the reason says why not.

    Args:
        requested: `--engine`.
        targets: `--target`, each a GPU family such as `sm89`; empty is this machine's GPU.
        precision: the word of each component, for which `auto` looks for a proof of `iblip prove`;
            `None` looks for none.
        llm_engine: `--llm-engine`, likewise.

    Raises:
        OptionError: the name is unknown, this machine cannot build the engine, or the engine does
            not build for a target; the message says what to do.
        EngineError: its library is installed but does not load.
    """
    if requested == AUTO:
        choice = _choose_automatically(precision, llm_engine)
    else:
        choice = _find_requested(requested)
    if KINDS[choice.kind].plans:
        from iblip.engines.tensorrt.libraries import find_library

        find_library(choice.kind).check_targets(targets)
    elif targets:
        raise OptionError(
            f"--target {targets[0]} is for plans that are built ahead of time, and --engine "
            f"{requested} builds none. Add --engine tensorrt-rtx, or leave --target out."
        )
    return choice


def _find_requested(requested: str) -> EngineChoice:
    if requested not in KINDS:
        other = OTHER_NAMES.get(requested.lower())
        hint = f" Did you mean {other!r}?" if other else did_you_mean(requested, [*KINDS, AUTO])
        raise OptionError(
            f"there is no engine {requested!r}.{hint} Engines: {', '.join([AUTO, *KINDS])}"
        )
    kind = KINDS[requested]
    obstacle = kind.obstacle()
    if obstacle:
        raise OptionError(f"--engine {requested} is not possible here: {obstacle}")
    obstacle = kind.running_obstacle()
    note = f" It is built here, but cannot run here: {obstacle}" if obstacle else ""
    return EngineChoice(kind=requested, reason=kind.reason + note)


def _choose_automatically(precision: Mapping[str, str] | None, llm_engine: str) -> EngineChoice:
    proofs = {kind: _find_reason(kind, precision, llm_engine) for kind in PREFERRED}
    obstacles = {kind: KINDS[kind].running_obstacle() for kind in PREFERRED if proofs[kind]}
    chosen = next((kind for kind, obstacle in obstacles.items() if obstacle is None), None)
    if chosen is None:
        why = " ".join(obstacle for obstacle in obstacles.values() if obstacle)
        raise OptionError(f"--engine auto finds nothing that runs here: {why}")
    if not has_nvidia_gpu():
        why = "This machine has no NVIDIA driver, so the components run on ONNX Runtime's CPU code."
        return EngineChoice(kind=chosen, reason=why)
    others = [
        kind
        for kind, row in KINDS.items()
        if not proofs.get(kind) and not row.proven and not row.running_obstacle()
    ]
    why = proofs[chosen]
    if others:
        why += (
            f" This machine has a GPU; these would run on it: --engine {', '.join(others)}."
            " `iblip prove` of such a build shows whether they answer rightly here."
        )
    return EngineChoice(kind=chosen, reason=why)


def _find_reason(kind: str, precision: Mapping[str, str] | None, llm_engine: str) -> str:
    """Why `auto` may take an engine: who has compared it; empty if nobody has."""
    title = KINDS[kind].title
    if KINDS[kind].proven:
        return f"{title} is what has been compared with transformers (docs/evidence.md)."
    driver = find_driver()
    if precision is None or driver is None or any(is_stub(gpu.name) for gpu in driver.gpus):
        return ""
    llm = language_model_kind(llm_engine, kind, precision["language_model"])
    engines = dict.fromkeys(precision, kind) | {"language_model": llm}
    proof = find_proof(key_here(engines, precision, driver))
    if proof is None:
        return ""
    return f"{title} was proven on this machine's {proof['gpu']} on {proof['created'][:10]}."
