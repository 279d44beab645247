"""Precision policies: which dtype each component computes in, and what stays in float32.

Islands of float32 inside an fp16 or bf16 graph, and why:

- LayerNorm and softmax: naive fp16 ViT graphs gave cosine 0.14 against 0.9997 with these in float32
  (TensorRT-LLM issue 3223).
- T5's `wo`: its products leave fp16's range (transformers issues 5651 and 23918, TensorRT issue
  2922); transformers keeps it in float32 as well (`T5PreTrainedModel._keep_in_fp32_modules`).
- Image normalisation and attention masks, which cost nothing.

`int8` and `int4` are about weights: what they make of them is in `export.quantisation`. All else of
such a graph is float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from export.errors import OptionError

COMPONENTS = ("vision_encoder", "qformer", "language_model")
"""The components that have a precision, in the order in which data flows through them."""

DTYPES: Mapping[str, str] = {
    "fp32": "float32",
    "fp16": "float16",
    "int8": "float32",
    "int4": "float32",
}
"""Precision word to the dtype of tensors between components, and of all weights that the word does
not make smaller."""

QUANTISED = ("int8", "int4")
"""Words that make weights into whole numbers."""

INT4 = {"vision_encoder": "fp32", "qformer": "fp32", "language_model": "int4"}
"""What the one word `int4` means: all weights of the language model are read for every token."""


def parse_precision(text: str) -> dict[str, str]:
    """Reads `fp16`, or a policy per component: `vision_encoder=fp16,language_model=int4`.

    Returns:
        The precision word of every component. Those that a policy leaves out are `fp32`; of the one
        word `int4` see `INT4`.

    Raises:
        OptionError: an unknown word, an unknown component, a component named twice, or a precision
            that a component does not have.
    """
    if "=" not in text:
        word = _word(text, asked=text)
        return dict(INT4) if word == "int4" else dict.fromkeys(COMPONENTS, word)
    policy: dict[str, str] = {}
    for item in text.split(","):
        component, _, word = item.strip().partition("=")
        if component not in COMPONENTS:
            raise OptionError(
                f"--precision {text}: there is no component {component!r};"
                f" components: {', '.join(COMPONENTS)}{_near(component, COMPONENTS)}"
            )
        if component in policy:
            raise OptionError(f"--precision {text}: {component} is named twice")
        policy[component] = _word(word, asked=text)
        if policy[component] == "int4" != INT4[component]:
            raise OptionError(
                f"--precision {text}: {component} cannot be int4, only language_model can: the"
                " other components are bound by arithmetic, not by reading weights. Use int8, fp16"
                " or fp32 for it."
            )
    return {component: policy.get(component, "fp32") for component in COMPONENTS}


def _word(word: str, *, asked: str) -> str:
    if word not in DTYPES:
        raise OptionError(
            f"--precision {asked}: there is no precision {word!r};"
            f" known: {', '.join(DTYPES)}{_near(word, DTYPES)}"
        )
    return word


def _near(word: str, known: Mapping[str, str] | tuple[str, ...]) -> str:
    near = get_close_matches(word, known, n=1)
    return f". Did you mean {near[0]!r}?" if near else ""
