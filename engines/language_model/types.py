"""What goes into a language-model engine, and what comes out: requests, events, answers.

The interface says nothing of how many requests run at once, of how a sequence is decoded, or in
which process: an engine that runs one request at a time, one that batches continuously, and one
that forwards to another server all stand behind `LanguageModelEngine`. Knows numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol, Self

import numpy.typing as npt

from export.errors import EngineError, OptionError

FinishReason = Literal["eos", "stop", "length", "cancelled"]
"""Why an answer ended: an end-of-sequence token, a stop string, `max_new_tokens` (or the model's
length), or the caller."""

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How an answer is generated. Every field travels as a Triton request parameter of that name.

    Attributes:
        max_new_tokens: 1 or more; `None` takes the checkpoint's own default.
        min_new_tokens: end-of-sequence is forbidden before this many tokens.
        temperature: 0 is greedy; otherwise logits are divided by it and a token is drawn.
        top_k: draw among the k likeliest; 0 is all. Effective only when temperature > 0.
        top_p: draw among the likeliest that reach this probability, in (0, 1]. As `top_k`.
        repetition_penalty: above 1 makes repeats less likely, as in transformers; 1 is off.
        stop: the answer ends before any of these strings.
        seed: of the draw; `None` takes a fresh one. Effective only when temperature > 0.

    Raises:
        OptionError: naming the option, what was given and its range.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            _integer("max_new_tokens", self.max_new_tokens, 1, None)
        _integer("min_new_tokens", self.min_new_tokens, 0, self.max_new_tokens)
        _number("temperature", self.temperature, "0 to 100", lambda x: 0 <= x <= 100)
        _integer("top_k", self.top_k, 0, None)
        _number("top_p", self.top_p, "above 0, at most 1", lambda x: 0 < x <= 1)
        penalty = self.repetition_penalty
        _number("repetition_penalty", penalty, "above 0, at most 100", lambda x: 0 < x <= 100)
        if self.seed is not None:
            _integer("seed", self.seed, 0, MAX_SEED)
        if not isinstance(self.stop, tuple) or not all(
            isinstance(text, str) and text for text in self.stop
        ):
            raise OptionError(f"stop is {self.stop!r}; wanted a list of strings that are not empty")

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> Self:
        """Options by name, `stop` as a list of strings.

        Raises:
            OptionError: an unknown name (the nearest known one is offered), or a bad value.
        """
        known = {f.name for f in fields(cls)}
        for name in options:
            if name not in known:
                raise OptionError(_unknown(name, known))
        values = dict(options)
        if isinstance(values.get("stop"), list):
            values["stop"] = tuple(values["stop"])
        return cls(**values)


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


def _number(name: str, value: object, span: str, fits: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise OptionError(f"{name} is {value!r}; wanted a number, {span}")
    if not math.isfinite(value) or not fits(value):
        raise OptionError(f"{name} is {value}; wanted a number, {span}")


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One question for the engine.

    Attributes:
        prompt: as the user wrote it; the engine applies the family's template and tokenises.
        visual_prompt: float32 or float16 `[queries, d_llm]`.
        options: how to generate.
        deadline: `time.monotonic()` seconds after which the request is given up with
            `DeadlineError`; `None` waits for ever.
    """

    prompt: str
    visual_prompt: npt.NDArray[Any]
    options: GenerationOptions = field(default_factory=GenerationOptions)
    deadline: float | None = None


@dataclass(frozen=True, kw_only=True)
class TextDelta:
    """Some more of the answer. All deltas of an answer, joined, are exactly `Answer.text`.

    Attributes:
        text: whole characters, never empty.
        token_ids: the tokens since the last delta.
    """

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Where an answer's time went, in seconds."""

    queue_s: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A finished answer.

    Attributes:
        text: decoded without special tokens, and without a stop string that ended it.
        token_ids: as generated, without the closing end-of-sequence token.
        finish_reason: see `FinishReason`.
        prompt_tokens: visual prompt and text, in positions.
        completion_tokens: generated tokens, an end-of-sequence token included.
        seed: the one that was used; `None` for greedy.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    seed: int | None
    timing: Timing


Event = TextDelta | Answer
"""An answer is any number of `TextDelta`, then one `Answer`."""


class Generation(Protocol):
    """A submitted request. Iterating waits for its events; the last one is the `Answer`.

    Iterating raises what made the request fail: `DeadlineError` (its deadline passed),
    `EngineError` (the engine failed, or was closed). One thread iterates; `cancel` may be called
    from any. A request whose `Generation` is dropped unfinished is cancelled.
    """

    def __iter__(self) -> Iterator[Event]: ...

    def cancel(self) -> None:
        """Stops the request within one step. Its last event is an `Answer` with `cancelled`."""

    def result(self) -> Answer:
        """Waits for the end and returns the answer."""


class QueueFullError(EngineError):
    """As many requests are waiting as the engine takes. Trying again later may succeed."""


class LanguageModelEngine(Protocol):
    """Answers requests, in the order and as many at once as it can. Thread-safe."""

    def submit(self, request: GenerationRequest) -> Generation:
        """Queues the request and returns at once.

        Raises:
            OptionError, InputError: the request does not fit this model (prompt too long, wrong
                visual prompt).
            QueueFullError: as many requests are waiting as the engine takes.
            EngineError: the engine is closed.
        """

    def close(self) -> None:
        """Ends every request with `EngineError`, then frees the engine."""
