"""Which engine runs which precision: what one cannot is refused before anything is exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from iblip.engines.hardware.nvidia import find_driver
from iblip.engines.kinds import KINDS, OPENVINO
from iblip.engines.onnxruntime.saturation import integers_saturate
from iblip.export.errors import OptionError
from iblip.export.precision import DTYPES
from iblip.export.quantisation.options import Activations, Quantisation


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """One row of `REFUSALS`.

    Attributes:
        reason: why the engine cannot.
        instead: what to do.
        only: the component that it is about; `None` is any.
    """

    reason: str
    instead: str
    only: str | None = None


_DYNAMIC = Refusal(
    reason="TensorRT reads no graph whose activations are quantised at run time; its scales are"
    " constants (DynamicQuantizeLinear is not an operator of its ONNX parser)",
    instead="Add --int8 static, or --engine onnxruntime.",
)
_INTEGERS = Refusal(
    reason="the weights that vLLM reads are the checkpoint's own, as floats",
    instead="Choose fp32, fp16 or bf16 for it, or --llm-engine onnxruntime.",
)

IN_FLOAT32 = ("fp32", "int8", "int4")
"""Precisions of a language model whose weights are floats or blocks of integers, and whose other
tensors are float32."""

_NOT_FLOAT32 = Refusal(
    reason="attention over slots is given float32 by OpenVINO",
    instead=f"Choose {', '.join(IN_FLOAT32)} for it, or --llm-engine onnxruntime.",
    only="language_model",
)
_OF_ONNXRUNTIME = Refusal(
    reason="activations that are quantised at run time are an operator of ONNX Runtime's own"
    " (DynamicQuantizeMatMul)",
    instead="Add --int8 static, or for the language model --llm-int8 weights; or choose"
    " onnxruntime.",
)
_FOR_TENSORRT = Refusal(
    reason="it is for TensorRT", instead="Choose int8 with --int8 static, bf16 or fp32."
)
_NO_BFLOAT16 = Refusal(
    reason="this processor does not multiply bfloat16 (AVX512_BF16, AMX)",
    instead="Choose fp32, or build on one that does.",
)

_FOUND_AT_RUN_TIME = Refusal(
    reason="ONNX Runtime's CUDA provider has no kernels for activations that are quantised at run"
    " time (DynamicQuantizeLinear, MatMulInteger): they would run on the CPU",
    instead="Add --int8 static, or choose fp16.",
)
_FLOAT32_ATTENTION = Refusal(
    reason="ONNX Runtime's CUDA provider has no attention over slots in float32"
    " (GroupQueryAttention): it would run on the CPU, and every step would copy the caches",
    instead="Choose fp16, bf16, int8 or int4 for it.",
    only="language_model",
)

Row = tuple[str, str, Activations]
"""An engine, a precision word, and how activations are quantised (`float`: they are not)."""

REFUSALS: Mapping[Row, Refusal] = {
    ("tensorrt", "int8", "dynamic"): _DYNAMIC,
    ("tensorrt-rtx", "int8", "dynamic"): _DYNAMIC,
    ("onnxruntime-tensorrt", "int8", "dynamic"): _DYNAMIC,
    ("onnxruntime-tensorrt-rtx", "int8", "dynamic"): _DYNAMIC,
    ("onnxruntime-cuda", "int8", "dynamic"): _FOUND_AT_RUN_TIME,
    ("onnxruntime-cuda", "fp32", "float"): _FLOAT32_ATTENTION,
    ("vllm", "int8", "dynamic"): _INTEGERS,
    **{("vllm", word, "float"): _INTEGERS for word in DTYPES if word.startswith("int")},
    **{(OPENVINO, word, "float"): _NOT_FLOAT32 for word in DTYPES if word not in IN_FLOAT32},
    (OPENVINO, "int8", "dynamic"): _OF_ONNXRUNTIME,
    (OPENVINO, "int8-fp16", "static"): _FOR_TENSORRT,
    (OPENVINO, "fp8", "static"): _FOR_TENSORRT,
}
"""What engines cannot run."""

LEAST_TARGETS: Mapping[str, int] = {"fp8": 89}
"""By precision word: the first GPU architecture (`sm89`) that multiplies such numbers. TensorRT's
builder has no other way for earlier ones: "HW-specific datatypes: fp8_e4m3"."""

_EMULATED = (
    "ONNX Runtime's CPU provider multiplies its numbers of eight bits as floats: the answers are"
    " those of a GPU up to rounding, the time is not. TensorRT is what it is for."
)

_DEQUANTISED = (
    "ONNX Runtime's CUDA provider has no products of eight bits: it makes floats of both factors,"
    " multiplies these, and rounds again, which is slower than fp16. Choose fp16, or --engine"
    " tensorrt, which multiplies in eight bits."
)

_SATURATES = (
    "this processor has no VNNI, without which OpenVINO's products of 8-bit integers saturate, so"
    " answers may be worse than elsewhere. Choose --engine onnxruntime, which multiplies them"
    " exactly, or fp32."
)

_FOR_A_GPU = (
    "it is for a GPU. ONNX Runtime's CPU provider casts to float32 and back around every product:"
    " the weights alone, without what follows the dash, are as precise there, and faster."
)

_AS_FP32 = "OpenVINO multiplies it in float32: as fast as fp32. bf16 is faster where it is offered."

REMARKS: Mapping[Row, str] = {
    **{(OPENVINO, word, "float"): _AS_FP32 for word in ("fp16", "lavis")},
    **{
        ("onnxruntime", word, "float"): _FOR_A_GPU
        for word in ("int4-fp16", "int4-bf16", "int8-fp16", "int8-bf16")
    },
    ("onnxruntime", "fp8", "static"): _EMULATED,
    ("onnxruntime", "int8-fp16", "static"): _EMULATED,
    ("onnxruntime-cuda", "int8", "static"): _DEQUANTISED,
    ("onnxruntime-cuda", "int8-fp16", "static"): _DEQUANTISED,
    ("onnxruntime-cuda", "fp8", "static"): _DEQUANTISED,
}
"""What there is to say of what engines can run."""


def check_precision(
    engine: str,
    component: str,
    word: str,
    quantisation: Quantisation | None,
    targets: Sequence[str] = (),
) -> None:
    """Refuses what an engine cannot run.

    Args:
        engine: a key of `engines.kinds.KINDS`, or `vllm`.
        component: what it would run.
        word: the component's precision.
        quantisation: the component's, if any.
        targets: GPU architectures that plans are built for, such as `sm89`. Where there are none,
            an engine that has plans has them for this machine's first GPU, which is then asked.

    Raises:
        OptionError: with the reason, and what to do instead.
    """
    refusal = (
        find_refusal(engine, component, word, quantisation)
        or _refused_gpus(engine, word, targets)
        or _refused_processor(engine, word)
    )
    if refusal is not None:
        raise OptionError(
            f"--precision {component}={word} is not for {engine}: {refusal.reason}."
            f" {refusal.instead}"
        )


def find_refusal(
    engine: str, component: str, word: str, quantisation: Quantisation | None
) -> Refusal | None:
    """The row of `REFUSALS` that is about this; `None` if there is none.

    Args:
        engine, component, word, quantisation: as `check_precision` takes them.
    """
    refusal = REFUSALS.get(_row(engine, word, quantisation))
    return refusal if refusal is not None and refusal.only in (None, component) else None


def remark_on_precision(
    engine: str, component: str, word: str, quantisation: Quantisation | None
) -> str | None:
    """What the user should know of a precision that the engine can run; `None` if nothing.

    Args:
        engine, component, word, quantisation: as `check_precision` takes them.
    """
    row = _row(engine, word, quantisation)
    remark = REMARKS.get(row)
    if row == (OPENVINO, "int8", "static") and integers_saturate():
        remark = _SATURATES
    return remark and f"{component}={word}: {remark}"


def _row(engine: str, word: str, quantisation: Quantisation | None) -> Row:
    return engine, word, quantisation.activations if quantisation else "float"


def _refused_gpus(engine: str, word: str, targets: Sequence[str]) -> Refusal | None:
    least = LEAST_TARGETS.get(word)
    if least is None:
        return None
    early = [one for one in targets or _own_gpu(engine) if _architecture(one) < least]
    if not early:
        return None
    return Refusal(
        reason=f"{', '.join(early)} cannot multiply such numbers, sm{least} and later can",
        instead="Leave those targets out, or choose int8-fp16 or fp16."
        if targets
        else "That is this machine's GPU: choose int8-fp16 or fp16, or build on a later one.",
    )


def _refused_processor(engine: str, word: str) -> Refusal | None:
    if (engine, word) != (OPENVINO, "bf16"):
        return None
    from iblip.engines.openvino.graph import multiplies_bfloat16

    return None if multiplies_bfloat16() else _NO_BFLOAT16


def _own_gpu(engine: str) -> list[str]:
    """The architecture of the GPU that an engine's plans are for without a target."""
    if engine not in KINDS or not KINDS[engine].plans:
        return []
    driver = find_driver()
    return [gpu.capability for gpu in driver.gpus[:1]] if driver else []


def _architecture(target: str) -> int:
    return int(target.lower().removeprefix("sm"))
