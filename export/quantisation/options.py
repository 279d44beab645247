"""The caller's options of quantisation, and the quantisation of each component."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from iblip.export.errors import OptionError
from iblip.export.precision import COMPONENTS, PrecisionPolicy
from iblip.export.system.paths import settle_paths

BLOCK_SIZES = (16, 32, 64, 128, 256)
"""Block sizes of `com.microsoft.MatMulNBits`: weights that share a scale."""

LANGUAGE_MODEL = "language_model"

Activations = Literal["float", "dynamic", "static"]
"""How activations enter a MatMul: as floats; in eight bits with a scale computed at run time; or in
eight bits with a scale from calibration."""

Format = Literal["int", "e4m3"]
"""Numbers of eight bits: integers, or floats with four bits of exponent."""

Method = Literal["rtn", "k-quant"]
"""How weights are rounded: to nearest, or by another of `export.quantisation.blockwise.METHODS`."""

Int8 = Literal["dynamic", "static"]
LanguageModelInt8 = Literal["weights", "dynamic"]


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """How one component is quantised.

    Attributes:
        bits: of a weight, 4 or 8.
        format: see `Format`.
        activations: see `Activations`. Weights are quantised block-wise for `float`, and
            channel-wise for the others.
        block_size: weights that share a scale, along the input axis; `None` if channel-wise.
        symmetric: whether 0 is the middle of the range; if not, blocks have a zero point.
        method: of rounding.
        sensitive: share of matmuls that stay more precise, those with the largest measured error:
            in 8 bits if `bits` is 4, in the graph's own dtype if it is 8.
        calibration: directory of images, if one was named.

    Raises:
        OptionError: e4m3 without 8 bits and static activations.
    """

    bits: int
    format: Format = "int"
    activations: Activations = "float"
    block_size: int | None = None
    symmetric: bool = True
    method: Method = "rtn"
    sensitive: float = 0.0
    calibration: Path | None = None

    def __post_init__(self) -> None:
        if self.format == "e4m3" and (self.bits, self.activations) != (8, "static"):
            given = f"{self.bits} bits and {self.activations} activations"
            raise OptionError(f"e4m3 with {given}; expected 8 bits and static activations")

    @property
    def is_measured(self) -> bool:
        """Whether its matmuls are measured before they are quantised."""
        return self.activations == "static" or self.sensitive > 0

    def to_json(self) -> dict[str, Any]:
        """Returns the fields that apply, JSON-ready."""
        fields = asdict(self) | {"calibration": self.calibration and str(self.calibration)}
        applying = {name: value for name, value in fields.items() if value is not None}
        return {"summary": str(self), **applying}

    def __str__(self) -> str:
        if self.activations != "float":
            word = "int8" if self.format == "int" else self.format
            return f"{word} weights by channel, {self.activations} {word} activations"
        kind = "symmetric" if self.symmetric else "asymmetric"
        return f"int{self.bits} weights, blocks of {self.block_size}, {kind}, {self.method}"


@dataclass(frozen=True, kw_only=True)
class QuantisationOptions:
    """The caller's options of quantisation, for all components.

    Attributes:
        int8: activations of a vision encoder or Q-Former in `int8`; `None` is dynamic.
        llm_int8: of a language model in `int8`: `weights` alone, block-wise, or `dynamic`
            activations too.
        calibration: directory of images to measure on; `None` is the checkpoint's own examples.
        block_size: weights that share a scale, in a language model.
        asymmetric: whether blocks have a zero point. Methods other than `rtn` always have one.
        int4_method: of rounding to four bits.
        sensitive: share of matmuls that stay more precise; `None` is that of `SENSITIVE`.

    Raises:
        OptionError: a value is out of range.
    """

    int8: Int8 | None = None
    llm_int8: LanguageModelInt8 = "weights"
    calibration: Path | None = None
    block_size: int = 32
    asymmetric: bool = False
    int4_method: Method = "rtn"
    sensitive: float | None = None

    def __post_init__(self) -> None:
        for name, kind in CHOICES.items():
            if getattr(self, name) not in (None, *get_args(kind)):
                option, known = name.replace("_", "-"), ", ".join(get_args(kind))
                raise OptionError(f"--{option} is {getattr(self, name)!r}; expected one of {known}")
        if self.block_size not in BLOCK_SIZES:
            sizes = ", ".join(map(str, BLOCK_SIZES))
            raise OptionError(f"--block-size is {self.block_size}; expected one of {sizes}")
        if self.sensitive is not None and not 0 <= self.sensitive <= 1:
            raise OptionError(f"--sensitive is {self.sensitive}; expected a share from 0 to 1")
        settle_paths(self, "calibration")
        if self.calibration is not None and not self.calibration.is_dir():
            raise OptionError(f"--calibration {self.calibration} is no directory")


SENSITIVE: Mapping[Activations, float] = {"float": 0.0, "dynamic": 0.05, "static": 0.05}
"""Default share of matmuls that stay more precise, by activations."""

CHOICES: Mapping[str, Any] = {"int8": Int8, "llm_int8": LanguageModelInt8, "int4_method": Method}
"""Options with a fixed set of values."""


def quantisations(policy: PrecisionPolicy, options: QuantisationOptions) -> dict[str, Quantisation]:
    """Returns the quantisation of each component that has one.

    Args:
        policy: the precision of every component.
        options: the caller's.

    Raises:
        OptionError: an option applies to no component.
    """
    by_component = {name: _quantisation(name, policy.word(name), options) for name in COMPONENTS}
    quantised = {name: value for name, value in by_component.items() if value is not None}
    items = [(name, policy.word(name), value) for name, value in quantised.items()]
    defaults = QuantisationOptions()
    for name, (applies, where) in USED.items():
        if getattr(options, name) != getattr(defaults, name) and not any(map(applies, items)):
            option = name.replace("_", "-")
            raise OptionError(f"--{option} is for {where}, and this build has none. Leave it out.")
    return quantised


Item = tuple[str, str, Quantisation]
"""A component, its precision word, and its quantisation."""

USED: Mapping[str, tuple[Callable[[Item], bool], str]] = {
    "int8": (
        lambda i: i[0] != LANGUAGE_MODEL and i[1] == "int8",
        "an int8 vision encoder or Q-Former",
    ),
    "llm_int8": (lambda i: i[0] == LANGUAGE_MODEL and i[1] == "int8", "an int8 language model"),
    "block_size": (lambda i: i[2].block_size is not None, "a language model in blocks"),
    "asymmetric": (lambda i: i[2].block_size is not None, "a language model in blocks"),
    "int4_method": (lambda i: i[2].bits == 4, "an int4 language model"),
    "sensitive": (lambda i: True, "int8, int4 and fp8"),
    "calibration": (
        lambda i: i[2].is_measured,
        "what is measured (int8-fp16, fp8, --int8 static, --sensitive)",
    ),
}
"""The quantisations that an option applies to, as a test and in words."""


STATIC: Mapping[str, Format] = {"int8-fp16": "int", "fp8": "e4m3"}
"""Format of the numbers, by the precision words whose activations are always static."""


def _quantisation(component: str, word: str, options: QuantisationOptions) -> Quantisation | None:
    llm = component == LANGUAGE_MODEL
    if llm:
        word = word.partition("-")[0]  # its weights are the same, whatever surrounds them
    if word in STATIC or (word == "int8" and not (llm and options.llm_int8 == "weights")):
        asked = "static" if word in STATIC else options.int8
        activations: Activations = "dynamic" if llm or asked is None else asked
        return Quantisation(
            bits=8,
            format=STATIC.get(word, "int"),
            activations=activations,
            sensitive=SENSITIVE[activations] if options.sensitive is None else options.sensitive,
            calibration=options.calibration,
        )
    if word not in ("int8", "int4"):
        return None
    method = options.int4_method if word == "int4" else "rtn"
    return Quantisation(
        bits=8 if word == "int8" else 4,
        block_size=options.block_size,
        symmetric=method == "rtn" and not options.asymmetric,
        method=method,
        sensitive=SENSITIVE["float"] if options.sensitive is None else options.sensitive,
        calibration=options.calibration,
    )
