"""How an answer is generated: every option, its range, and what goes together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

from iblip.export.errors import OptionError

MAX_SEED = 2**63 - 1
MOST_SEQUENCES = 64
MOST_LOGPROBS = 100
MOST_CANDIDATES = 1000


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How an answer is generated. Every field travels as a Triton request parameter of that name.

    Attributes:
        max_new_tokens: 1 or more; `None` takes the checkpoint's own default.
        min_new_tokens: the answer cannot end by a token before this many tokens.
        max_length: instead of `max_new_tokens`, in positions as transformers counts them where it
            has token ids: the image, the prompt and the answer of a decoder-only model; the start
            token and the answer of an encoder-decoder.
        min_length: instead of `min_new_tokens`, counted in the same way.
        temperature: 0 is greedy; otherwise logits are divided by it and a token is drawn.
        top_k: draw among the k likeliest; 0 is all. Effective only when temperature > 0.
        top_p: draw among the likeliest that reach this probability, in (0, 1]. As `top_k`.
        min_p: draw among those with at least this share of the likeliest's probability, 0 to 1;
            0 is all. As `top_k`.
        repetition_penalty: above 1 makes repeats less likely, as in transformers; 1 is off.
        no_repeat_ngram_size: no run of so many tokens occurs twice, the prompt of a decoder-only
            model included; 0 is off.
        penalty_scope: what counts as said for the penalty, for repeated runs and for banned words:
            `"all"`, as transformers given ids: a decoder-only model's image placeholders and prompt
            too; or `"answer"`, as LAVIS, which gives it embeddings alone: the answer, and the start
            token of an encoder-decoder.
        logit_bias: added to the logits of these token ids, -100 to 100 each.
        banned_words: words that the answer may not contain, as their own tokens.
        stop: the answer ends before any of these strings.
        stop_token_ids: the answer ends before any of these tokens.
        seed: of the draw; `None` takes a fresh one. Effective only when temperature > 0.
        logprobs: report each token's log-probability, and those of so many likeliest; `None`
            reports none.
        n: how many answers. More than one needs a temperature above 0, or as many beams.
        num_beams: above 1, beam search with so many beams. Nothing is drawn then.
        length_penalty: of a beam search or a ranking: sums of log-probabilities are divided by the
            number of tokens to this power, so that above 0 it favours long answers, below 0 short
            ones. `None` is 1 in a beam search and 0 in a ranking: the sum itself, as in LAVIS.
        early_stopping: of a beam search: `True` ends it at `num_beams` finished beams; `False`
            where better ones are unlikely; `"never"` where there can be none.
        beam_scorer: of a beam search: `"v5"` scores and ends it as transformers 5; `"v4"` as 4.33
            and before, with which LAVIS answers: a beam that is cut off counts a token more.
        candidates: answers to choose from, 1 to 1000: nothing is generated, each is scored, and
            the answer is the likeliest. Of the other options only `length_penalty`, `truncation`
            and `max_instruction` go with it.
        truncation: which end of the Q-Former's instruction is cut off where it is longer than
            `max_instruction`, as a tokenizer's `truncation_side`; `""` refuses one that is too
            long. The language model reads the prompt whole.
        max_instruction: tokens, with the special ones; `None` is as many as the Q-Former holds.
            Effective only with `truncation`.
        echo: the answer's text and token ids begin with the prompt's, image placeholders
            included, as `generate` of transformers returns them. Of decoder-only models.

    Raises:
        OptionError: naming the option, what was given and its range.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    banned_words: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    n: int = 1
    num_beams: int = 1
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] = False
    candidates: tuple[str, ...] = ()
    max_length: int | None = None
    min_length: int = 0
    penalty_scope: Literal["all", "answer"] = "all"
    truncation: Literal["", "left", "right"] = ""
    max_instruction: int | None = None
    echo: bool = False
    beam_scorer: Literal["v5", "v4"] = "v5"

    def __post_init__(self) -> None:
        self._check_lengths()
        _integer("top_k", self.top_k, 0, None)
        _integer("no_repeat_ngram_size", self.no_repeat_ngram_size, 0, None)
        for name, (span, fits) in _NUMBERS.items():
            _number(name, getattr(self, name), span, fits)
        if self.length_penalty is not None:
            _number("length_penalty", self.length_penalty, *_PENALTY)
        for name in ("stop", "banned_words", "candidates"):
            _strings(name, getattr(self, name))
        if not isinstance(self.stop_token_ids, tuple):
            raise OptionError(f"stop_token_ids is {self.stop_token_ids!r}; wanted a list of ids")
        for token in self.stop_token_ids:
            _integer("a token in stop_token_ids", token, 0, None)
        self._check_bias()
        if self.seed is not None:
            _integer("seed", self.seed, 0, MAX_SEED)
        if self.logprobs is not None:
            _integer("logprobs", self.logprobs, 0, MOST_LOGPROBS)
        _integer("n", self.n, 1, MOST_SEQUENCES)
        _integer("num_beams", self.num_beams, 1, MOST_SEQUENCES)
        self._check_choices()
        self._check_beams()
        if self.candidates:
            self._check_ranking()

    def _check_lengths(self) -> None:
        if self.max_new_tokens is not None:
            _integer("max_new_tokens", self.max_new_tokens, 1, None)
        if self.max_length is not None:
            _integer("max_length", self.max_length, 1, None)
        _integer("min_new_tokens", self.min_new_tokens, 0, self.max_new_tokens)
        _integer("min_length", self.min_length, 0, self.max_length)
        for one, other in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
            if getattr(self, one) and getattr(self, other):
                raise OptionError(
                    f"{one} is {getattr(self, one)} and {other} {getattr(self, other)}; they are "
                    "two ways to say the same: leave one of them out"
                )

    def _check_choices(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                wanted = ", ".join(map(repr, choices))
                raise OptionError(f"{name} is {getattr(self, name)!r}; wanted one of {wanted}")
        if not isinstance(self.echo, bool):
            raise OptionError(f"echo is {self.echo!r}; wanted true or false")
        if self.max_instruction is None:
            return
        _integer("max_instruction", self.max_instruction, 1, None)
        if not self.truncation:
            raise OptionError(
                f"max_instruction is {self.max_instruction}, and truncation says nothing; wanted "
                "truncation 'left' or 'right' with it: the end that is cut off"
            )

    def _check_bias(self) -> None:
        if not isinstance(self.logit_bias, Mapping):
            raise OptionError(f"logit_bias is {self.logit_bias!r}; wanted token ids and numbers")
        for token, bias in self.logit_bias.items():
            _integer("a token in logit_bias", token, 0, None)
            _number(f"logit_bias of {token}", bias, "-100 to 100", lambda x: -100 <= x <= 100)

    def _check_beams(self) -> None:
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise OptionError(
                f"early_stopping is {self.early_stopping!r}; wanted true, false or 'never'"
            )
        if self.num_beams > 1:
            if self.temperature > 0:
                raise OptionError(
                    f"num_beams is {self.num_beams} and temperature {self.temperature}; a beam "
                    "search draws nothing: leave one of them out"
                )
            if self.logprobs is not None:
                raise OptionError("logprobs is not known of a beam search; wanted num_beams 1")
            if self.n > self.num_beams:
                raise OptionError(f"n is {self.n}; wanted at most num_beams, {self.num_beams}")
        elif self.n > 1 and self.temperature == 0:
            raise OptionError(
                f"n is {self.n}; with temperature 0 all answers would be the same: "
                "wanted a temperature above 0, or num_beams"
            )

    def _check_ranking(self) -> None:
        if len(self.candidates) > MOST_CANDIDATES:
            raise OptionError(
                f"candidates has {len(self.candidates)} texts; wanted at most {MOST_CANDIDATES}"
            )
        blank = next((text for text in self.candidates if not text.strip()), None)
        if blank is not None:
            raise OptionError(f"candidates has {blank!r}; wanted texts that are not blank")
        others = self.to_mapping().keys() - {"candidates", *_OF_A_RANKING}
        if others:
            raise OptionError(
                f"candidates are given, and {', '.join(sorted(others))}; a ranking generates "
                f"nothing and takes no other option than {', '.join(_OF_A_RANKING)}: leave out one "
                "or the other"
            )

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> Self:
        """Options by name, as JSON has them: lists, and token ids in `logit_bias` as strings.

        Raises:
            OptionError: an unknown name (the nearest known one is offered), or a bad value.
        """
        known = {f.name for f in fields(cls)}
        for name in options:
            if name not in known:
                raise OptionError(_unknown(name, known))
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in options.items()
        }
        if isinstance(values.get("logit_bias"), Mapping):
            values["logit_bias"] = {_id(key): x for key, x in values["logit_bias"].items()}
        return cls(**values)

    def to_mapping(self) -> dict[str, Any]:
        """The options that differ from their defaults, JSON-ready; `from_mapping` reads them."""
        plain = type(self)()
        changed = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if getattr(self, f.name) != getattr(plain, f.name)
        }
        made = {k: list(v) if isinstance(v, tuple) else v for k, v in changed.items()}
        if "logit_bias" in made:
            made["logit_bias"] = {str(token): bias for token, bias in self.logit_bias.items()}
        return made


_NUMBERS: Mapping[str, tuple[str, Callable[[float], bool]]] = {
    "temperature": ("0 to 100", lambda x: 0 <= x <= 100),
    "top_p": ("above 0, at most 1", lambda x: 0 < x <= 1),
    "min_p": ("0 to 1", lambda x: 0 <= x <= 1),
    "repetition_penalty": ("above 0, at most 100", lambda x: 0 < x <= 100),
}
"""Name to range, in words and as a test."""

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "penalty_scope": ("all", "answer"),
    "truncation": ("", "left", "right"),
    "beam_scorer": ("v5", "v4"),
}

_OF_A_RANKING = ("length_penalty", "truncation", "max_instruction")

_PENALTY: tuple[str, Callable[[float], bool]] = ("-10 to 10", lambda x: -10 <= x <= 10)


def _id(key: object) -> object:
    return int(key) if isinstance(key, str) and key.isascii() and key.isdigit() else key


def _unknown(name: str, known: set[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"there is no option {name!r}.{hint} Options: {', '.join(sorted(known))}"


def _integer(name: str, value: object, low: int, high: int | None) -> None:
    span = f"a whole number, {low} or more" if high is None else f"a whole number, {low} to {high}"
    if not isinstance(value, int) or isinstance(value, bool):
        raise OptionError(f"{name} is {value!r}; wanted {span}")
    if value < low or (high is not None and value > high):
        raise OptionError(f"{name} is {value}; wanted {span}")


def _number(name: str, value: object, span: str, fits: Callable[[float], bool]) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise OptionError(f"{name} is {value!r}; wanted a number, {span}")
    if not math.isfinite(value) or not fits(value):
        raise OptionError(f"{name} is {value}; wanted a number, {span}")


def _strings(name: str, value: object) -> None:
    if not isinstance(value, tuple) or not all(isinstance(text, str) and text for text in value):
        raise OptionError(f"{name} is {value!r}; wanted a list of strings that are not empty")
    for text in value:
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can spell
            raise OptionError(f"{name} has {text!r}, which is not valid Unicode text") from error
