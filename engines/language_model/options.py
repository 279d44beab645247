"""How an answer is generated: options that are checked, alone and together."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np

from iblip.engines.language_model.option_table import OPTIONS, VLLM
from iblip.export.errors import OptionError
from iblip.export.messages import did_you_mean, shown

BOUND = {name: option for name, option in OPTIONS.items() if option.at_most or option.instead_of}
"""The options whose values go with another's, or do not."""


def _default(name: str) -> Any:
    default = OPTIONS[name].default
    return field(default_factory=dict) if isinstance(default, dict) else default


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How an answer is generated. Every field travels as a Triton request parameter of that name.

    Raises:
        OptionError: naming the option, the value that was given, and those expected.
    """

    max_new_tokens: int | None = _default("max_new_tokens")
    min_new_tokens: int = _default("min_new_tokens")
    max_length: int | None = _default("max_length")
    min_length: int = _default("min_length")
    temperature: float = _default("temperature")
    top_k: int = _default("top_k")
    top_p: float = _default("top_p")
    min_p: float = _default("min_p")
    seed: int | None = _default("seed")
    repetition_penalty: float = _default("repetition_penalty")
    no_repeat_ngram_size: int = _default("no_repeat_ngram_size")
    penalty_scope: Literal["all", "answer"] = _default("penalty_scope")
    logit_bias: Mapping[int, float] = _default("logit_bias")
    banned_words: tuple[str, ...] = _default("banned_words")
    stop: tuple[str, ...] = _default("stop")
    stop_token_ids: tuple[int, ...] = _default("stop_token_ids")
    logprobs: int | None = _default("logprobs")
    n: int = _default("n")
    num_beams: int = _default("num_beams")
    length_penalty: float | None = _default("length_penalty")
    early_stopping: bool | Literal["never"] = _default("early_stopping")
    beam_scorer: Literal["v5", "v4"] = _default("beam_scorer")
    candidates: tuple[str, ...] = _default("candidates")
    json_schema: Mapping[str, Any] | None = _default("json_schema")
    truncation: Literal["", "left", "right"] = _default("truncation")
    max_instruction: int | None = _default("max_instruction")
    echo: bool = _default("echo")

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            given = getattr(self, name)
            if given is option.default:  # most are: a request is read sooner
                continue
            value = without_numpy(given)
            object.__setattr__(self, name, value)
            option.check(value)
        self._check_lengths()
        self._check_instruction()
        self._check_beams()
        self._check_schema()
        if self.candidates:
            self._check_ranking()

    def _check_lengths(self) -> None:
        for name, option in BOUND.items():
            value = getattr(self, name)
            most = getattr(self, option.at_most) if option.at_most else None
            if most is not None and value > most:
                raise OptionError(f"{name} is {value}; expected at most {option.at_most}, {most}")
            other = getattr(self, option.instead_of) if option.instead_of else None
            if value and other:
                raise OptionError(
                    f"{name} is {value} and {option.instead_of} {other}; they are two ways to say "
                    "the same: leave one of them out"
                )

    def _check_instruction(self) -> None:
        if self.max_instruction is not None and not self.truncation:
            raise OptionError(
                f"max_instruction is {self.max_instruction}, and truncation is not given; expected "
                "truncation 'left' or 'right' with it: the end that is cut off"
            )

    def _check_beams(self) -> None:
        if self.num_beams > 1:
            if self.temperature > 0:
                raise OptionError(
                    f"num_beams is {self.num_beams} and temperature {self.temperature}; a beam "
                    "search samples nothing: leave one of them out"
                )
            if self.logprobs is not None:
                raise OptionError("logprobs is not known of a beam search; expected num_beams 1")
            if self.n > self.num_beams:
                raise OptionError(f"n is {self.n}; expected at most num_beams, {self.num_beams}")
        elif self.n > 1 and self.temperature == 0:
            raise OptionError(
                f"n is {self.n}; with temperature 0 all answers would be the same: "
                "expected a temperature above 0, or num_beams"
            )

    def _check_schema(self) -> None:
        if self.json_schema is None:
            return
        for name in ("num_beams", "min_new_tokens", "min_length", "stop", "stop_token_ids"):
            value = getattr(self, name)
            if value != OPTIONS[name].default:
                raise OptionError(
                    f"{name} is {shown(value)} and json_schema is given, which alone says where an "
                    "answer may end, and is not known of a beam search: leave one of them out"
                )

    def _check_ranking(self) -> None:
        ranking = [name for name, option in OPTIONS.items() if option.ranks]
        others = self.to_mapping().keys() - {"candidates", *ranking}
        if others:
            raise OptionError(
                f"candidates are given, and {', '.join(sorted(others))}; a ranking generates "
                f"nothing and takes no other option than {', '.join(ranking)}: leave out one or "
                "the other"
            )

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> Self:
        """Options by name, as JSON has them: lists, and token ids in `logit_bias` as strings.

        Raises:
            OptionError: an unknown name (the nearest known one is offered), or a bad value.
        """
        for name in options:
            if name not in OPTIONS:
                raise OptionError(_unknown(name))
        return cls(**values_from_json(options))

    def to_mapping(self) -> dict[str, Any]:
        """The options that differ from their defaults, JSON-ready; `from_mapping` reads them."""
        values = {name: getattr(self, name) for name in OPTIONS}
        changed = {name: value for name, value in values.items() if value != OPTIONS[name].default}
        made = {k: list(v) if isinstance(v, tuple) else v for k, v in changed.items()}
        if "logit_bias" in made:
            made["logit_bias"] = {str(token): bias for token, bias in self.logit_bias.items()}
        return made


def values_from_json(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by name, as JSON has them, with the values that `GenerationOptions` takes."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    if isinstance(values.get("logit_bias"), Mapping):
        values["logit_bias"] = {_id(key): x for key, x in values["logit_bias"].items()}
    return values


def without_numpy(value: Any) -> Any:
    """A value with numpy's numbers, and an array of them, as Python's own."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return tuple(value.tolist())
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if isinstance(value, Mapping):
        return {_plain(key): _plain(one) for key, one in value.items()}
    return _plain(value)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _attributes() -> str:
    """The options as a docstring describes them."""
    paragraphs = []
    for name, option in OPTIONS.items():
        sentences = [
            f"{name}: {option.help}",
            option.note,
            f"Takes {option.kind.expected}; default: {option.default_text}.",
            "Goes with `candidates`." if option.ranks else "",
            "" if VLLM in option.engines else "Not on vLLM.",
        ]
        text = " ".join(filter(None, sentences))
        paragraphs.append(textwrap.fill(text, 96, subsequent_indent="    "))
    return "Attributes:\n" + textwrap.indent("\n".join(paragraphs), "    ")


GenerationOptions.__doc__ = f"{inspect.getdoc(GenerationOptions)}\n\n{_attributes()}"


def _id(key: Any) -> Any:
    is_number = isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 20
    return int(key) if is_number else key


def _unknown(name: str) -> str:
    options = ", ".join(sorted(OPTIONS))
    return f"there is no option {shown(name)}.{did_you_mean(name, OPTIONS)} Options: {options}"
