"""Precision policies: which dtype each component computes in, and what stays in float32.

Islands of float32 inside an fp16 or bf16 graph, and why:

- LayerNorm and softmax: naive fp16 ViT graphs gave cosine 0.14 against 0.9997 with these in float32
  (TensorRT-LLM issue 3223).
- T5's `wo`: its products leave fp16's range (transformers issues 5651 and 23918, TensorRT issue
  2922); transformers keeps it in float32 as well (`T5PreTrainedModel._keep_in_fp32_modules`).
- Image normalisation and attention masks, which cost nothing.

`int8`, `int4` and `fp8` are about weights, and on vision encoder and Q-Former also about what they
are multiplied by: what they make of them is in `export.quantisation`. All else of such a graph is
float32. Of `fp8`, and of the words that end in `-fp16` and `-bf16`, it is as in `fp16` and `bf16`:
what a GPU computes in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Self

from iblip.export.errors import OptionError
from iblip.export.messages import did_you_mean

COMPONENTS = ("vision_encoder", "qformer", "language_model")
"""The components that have a precision, in the order in which data flows through them."""

DTYPES: Mapping[str, str] = {
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "int8": "float32",
    "int4": "float32",
    "int8-fp16": "float16",
    "int8-bf16": "bfloat16",
    "int4-fp16": "float16",
    "int4-bf16": "bfloat16",
    "fp8": "float16",
    "lavis": "float32",
}
"""Precision word to the dtype that is computed in: of the residual stream, of what a language model
keeps, and of all weights that the word does not make smaller."""

BETWEEN: Mapping[str, str] = {
    word: "float32" if dtype == "bfloat16" else dtype for word, dtype in DTYPES.items()
}
"""Precision word to the dtype of what one component hands to another: numpy has no bfloat16, nor
has Triton's Python backend."""

MATRICES: Mapping[str, str] = {"lavis": "float16"}
"""Precision word to the dtype of the weights of linear layers and convolutions, and of what these
compute, where that is not what `DTYPES` says: torch's autocast, under which the original runs."""

IN_FLOAT32 = ("wo",)
"""Last part of a module's path: its matrix stays in float32, whatever the precision (see above)."""

INT4 = {"vision_encoder": "fp32", "qformer": "fp32", "language_model": "int4"}
"""What the one word `int4` means: all weights of the language model are read for every token."""

INT4_FP16 = {"vision_encoder": "fp16", "qformer": "fp16", "language_model": "int4-fp16"}
INT4_BF16 = {"vision_encoder": "bf16", "qformer": "bf16", "language_model": "int4-bf16"}
INT8_BF16 = {"vision_encoder": "bf16", "qformer": "bf16", "language_model": "int8-bf16"}
"""What these words mean: weights of 4 or 8 bits for what reads all of them for every token, and one
dtype for all else."""

INT8_FP16 = {"vision_encoder": "int8-fp16", "qformer": "int8-fp16", "language_model": "fp16"}
FP8 = {"vision_encoder": "fp8", "qformer": "fp8", "language_model": "fp16"}
"""What these words mean: products of static scales are for what runs once an image."""

LAVIS = {"vision_encoder": "lavis", "qformer": "fp32", "language_model": "lavis"}
"""What the one word `lavis` means: the ViT's matrices in fp16; its class token, positions,
LayerNorms and residual stream in float32; the Q-Former in float32. Source: salesforce/LAVIS,
lavis/models/eva_vit.py (`convert_weights_to_fp16`) and blip2_models/blip2.py."""

LAVIS_LANGUAGE_MODELS: Mapping[str, str] = {
    "llama": "fp16",
    "opt": "fp16",
    "t5": "bf16",
    "mt5": "bf16",
}
"""A language model's type to its precision in the original; fp16 if it is none of LAVIS's, except
for mT5, which leaves the range of fp16 as T5 does. Source: salesforce/LAVIS,
blip2_models/blip2_vicuna_instruct.py, blip2_opt.py, blip2_t5_instruct.py."""

WORDS: Mapping[str, Mapping[str, str]] = {
    "int4": INT4,
    "int4-fp16": INT4_FP16,
    "int4-bf16": INT4_BF16,
    "int8-bf16": INT8_BF16,
    "int8-fp16": INT8_FP16,
    "fp8": FP8,
    "lavis": LAVIS,
}
"""What one word means where that is not the word itself for every component."""

SMALL_WEIGHTS = ("int8", "int4")
"""Precision words of a language model whose weights alone are small: `in_halves` adds to them what
all else computes in."""

NOT_FOR: Mapping[tuple[str, str], str] = {
    **{
        (component, word): "only language_model can: the other components are bound by arithmetic,"
        " not by reading weights. Use int8, fp16 or fp32 for it."
        for component in ("vision_encoder", "qformer")
        for word in ("int4", "int4-fp16", "int4-bf16", "int8-bf16")
    },
    ("language_model", "fp8"): "only vision_encoder and qformer can: a language model is bound by"
    " reading weights, which int4 and int8 make smaller. Use these, fp16 or fp32 for it.",
}
"""Component and word that do not go together: who can, why, and what to do instead."""


def stays_in_float32(path: str) -> bool:
    """Whether the matrix of the module at this path (`….DenseReluDense.wo`) stays in float32."""
    return path.rpartition(".")[2] in IN_FLOAT32


@dataclass(frozen=True, kw_only=True)
class PrecisionPolicy:
    """The precision of each component: a word of `DTYPES`.

    Attributes:
        vision_encoder, qformer, language_model: the word of each. A language model's `lavis` is
            still a question, which `resolve` answers once the model is known.

    Raises:
        OptionError: an unknown word, or one that a component cannot have.
    """

    vision_encoder: str = "fp32"
    qformer: str = "fp32"
    language_model: str = "fp32"

    def __post_init__(self) -> None:
        for component, word in self.to_json().items():
            _check(component, word, asked=str(self))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `fp16`, or a policy per component: `vision_encoder=fp16,language_model=int4`.

        Components that a policy leaves out are `fp32`; `WORDS` says what one word alone means.

        Raises:
            OptionError: an unknown word, an unknown component, a component named twice, or a
                precision that a component does not have.
        """
        if "=" not in text:
            return cls(**_meaning(_known(text, asked=text)))
        words: dict[str, str] = {}
        for item in text.split(","):
            component, _, word = item.strip().partition("=")
            if component not in COMPONENTS:
                raise OptionError(
                    f"--precision {text}: there is no component {component!r};"
                    f" components: {', '.join(COMPONENTS)}.{did_you_mean(component, COMPONENTS)}"
                )
            if component in words:
                raise OptionError(f"--precision {text}: {component} is named twice")
            _check(component, word, asked=text)
            lavis = word == "lavis" and component == "qformer"
            words[component] = LAVIS[component] if lavis else word
        return cls(**words)

    def resolve(self, model_type: str) -> Self:
        """The policy with the word of the original's language model in the place of `lavis`.

        Args:
            model_type: of the language model, a key of `LAVIS_LANGUAGE_MODELS`.
        """
        if self.language_model != "lavis":
            return self
        return replace(self, language_model=LAVIS_LANGUAGE_MODELS.get(model_type, "fp16"))

    def in_halves(self, model_type: str) -> Self:
        """The policy with 16 bits around a language model's small weights, as a GPU wants them.

        `int4` becomes `int4-fp16`, or `int4-bf16` where the original is bf16; other words stay.

        Args:
            model_type: as `resolve` takes it.
        """
        word = self.language_model
        if word not in SMALL_WEIGHTS:
            return self
        half = LAVIS_LANGUAGE_MODELS.get(model_type, "fp16")
        return replace(self, language_model=f"{word}-{half}")

    def word(self, component: str) -> str:
        """The word of one of `COMPONENTS`."""
        word: str = getattr(self, component)
        return word

    def dtype(self, component: str) -> str:
        """What one of `COMPONENTS` computes in, as `DTYPES` has it."""
        return DTYPES[self.word(component)]

    def to_json(self) -> dict[str, str]:
        """Component to word, in the order of `COMPONENTS`, as a manifest has it."""
        return asdict(self)

    def __str__(self) -> str:
        """The one word that means this, or else the word of each component; `parse` reads it."""
        words = self.to_json()
        each = ",".join(f"{component}={word}" for component, word in words.items())
        return next((word for word in DTYPES if _meaning(word) == words), each)


def _meaning(word: str) -> Mapping[str, str]:
    """What one word alone means, by component."""
    return WORDS.get(word, dict.fromkeys(COMPONENTS, word))


def _check(component: str, word: str, *, asked: str) -> None:
    if reason := NOT_FOR.get((component, _known(word, asked=asked))):
        raise OptionError(f"--precision {asked}: {component} cannot be {word}, {reason}")


def _known(word: str, *, asked: str) -> str:
    if word not in DTYPES:
        raise OptionError(
            f"--precision {asked}: there is no precision {word!r};"
            f" known: {', '.join(DTYPES)}.{did_you_mean(word, DTYPES)}"
        )
    return word
