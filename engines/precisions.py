"""Which engine runs which precision: what one cannot is refused before anything is exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from export.errors import OptionError
from export.quantisation.options import Quantisation


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """One row of `REFUSALS`.

    Attributes:
        reason: why the engine cannot.
        instead: what to do.
    """

    reason: str
    instead: str


_DYNAMIC = Refusal(
    reason="TensorRT reads no graph whose activations are quantised at run time; its scales are"
    " constants (DynamicQuantizeLinear is not an operator of its ONNX parser)",
    instead="Add --int8 static, or --engine onnxruntime.",
)
_WHOLE_NUMBERS = Refusal(
    reason="the weights that vLLM reads are the checkpoint's own, as floats",
    instead="Choose fp32, fp16 or bf16 for it, or --llm-engine onnxruntime.",
)

REFUSALS: Mapping[tuple[str, str], Refusal] = {
    ("tensorrt", "int8 dynamic"): _DYNAMIC,
    ("tensorrt-rtx", "int8 dynamic"): _DYNAMIC,
    ("vllm", "int8 dynamic"): _WHOLE_NUMBERS,
    ("vllm", "int8"): _WHOLE_NUMBERS,
    ("vllm", "int4"): _WHOLE_NUMBERS,
}
"""By engine and kind of precision: see `kind_of_precision`."""


def kind_of_precision(word: str, quantisation: Quantisation | None) -> str:
    """The precision word, and behind it how activations are quantised where they are."""
    if quantisation is None or quantisation.activations == "float":
        return word
    return f"{word} {quantisation.activations}"


def check_precision(
    engine: str, component: str, word: str, quantisation: Quantisation | None
) -> None:
    """Refuses what an engine cannot run.

    Args:
        engine: a key of `engines.selection.KINDS`, or `vllm`.
        component: what it would run.
        word: the component's precision.
        quantisation: the component's, if any.

    Raises:
        OptionError: with the reason, and what to do instead.
    """
    refusal = REFUSALS.get((engine, kind_of_precision(word, quantisation)))
    if refusal is not None:
        raise OptionError(
            f"--precision {component}={word} is not for {engine}: {refusal.reason}."
            f" {refusal.instead}"
        )
