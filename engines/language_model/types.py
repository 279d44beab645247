"""Requests, events and answers: what goes into a language-model engine and what comes out.

The interface does not say how many requests run at once, how a sequence is decoded, or in which
process. An engine that runs one request at a time, one that batches continuously, and one that
forwards to another server are all a `LanguageModelEngine`. Knows numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy.typing as npt

from iblip.engines.language_model.answer_page import html_from_answer
from iblip.engines.language_model.histograms import Distributions
from iblip.engines.language_model.options import GenerationOptions

FinishReason = Literal["eos", "stop", "length", "ranked", "cancelled"]
"""Why an answer ended: an end-of-sequence token; a stop string or stop token; `max_new_tokens` or
the model's length; it was ranked first among candidates; or the caller cancelled it."""

Priority = Literal["interactive", "bulk"]
"""Which of the waiting requests is next: interactive ones go first; see `waiting`."""

Outcome = Literal[
    "eos", "stop", "length", "ranked", "cancelled", "late", "failed", "invalid", "refused"
]
"""How a request ended: with an answer, late, by a failure, because its own options forbid every
token (`invalid`), or refused by a full queue."""


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One question for the engine.

    Attributes:
        prompt: as the user wrote it; the engine applies the family's template and tokenises.
        visual_prompt: float32 or float16 `[images, queries, d_llm]`.
        options: how to generate.
        deadline: `time.monotonic()` seconds after which the request is given up with
            `DeadlineError`; `None` is no deadline.
        vision_s: seconds that the visual prompt took, for the answer's `Timing`.
        priority: whether it goes before others in the queue.
    """

    prompt: str
    visual_prompt: npt.NDArray[Any]
    options: GenerationOptions = field(default_factory=GenerationOptions)
    deadline: float | None = None
    vision_s: float = 0.0
    priority: Priority = "interactive"


@dataclass(frozen=True, kw_only=True)
class TextDelta:
    """The next part of an answer. All deltas of an answer, joined, are exactly `Answer.text`.

    Attributes:
        text: whole characters, never empty.
        token_ids: the tokens since the last delta.
    """

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Where an answer's time went, in seconds. The phases follow one another in this order.

    Attributes:
        vision_s: until the visual prompt was ready: encoding the image or finding it encoded, the
            Q-Former, tokenising the prompt, and all waiting for these.
        queue_s: waiting for slots.
        prefill_s: reading the prompt, including other requests' steps between its pieces.
        decode_s: generating, until the end.
    """

    vision_s: float
    queue_s: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """How likely a chosen token was, before temperature, penalties and any other option.

    Attributes:
        token_id: the token.
        logprob: its log-probability, in nats.
        top: the most likely tokens at this place and their log-probabilities, most likely first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class RankedCandidate:
    """One candidate of a ranking, with its log-probability.

    Attributes:
        index: its index among the candidates of the request.
        text: as in the request.
        token_ids: the tokens that are scored. An encoder-decoder's include the closing
            end-of-sequence token, a decoder-only model's do not, as in LAVIS.
        logprob: the sum of their log-probabilities, in nats.
        score: what candidates are ranked by: `logprob / len(token_ids) ** length_penalty`.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprob: float
    score: float


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One of the answers to a request.

    Attributes:
        text: decoded without special tokens, and without a stop string that ended it.
        token_ids: as generated, without the closing end-of-sequence or stop token.
        finish_reason: see `FinishReason`.
        completion_tokens: generated tokens, a closing one included.
        logprobs: of every generated token, a closing one included; `None` if not requested.
        score: in a beam search or a ranking, the sum of log-probabilities with the length penalty.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    completion_tokens: int
    logprobs: tuple[TokenLogprob, ...] | None = None
    score: float | None = None


@dataclass(frozen=True, kw_only=True)
class Answer(Completion):
    """A finished answer: itself the first completion.

    Attributes:
        prompt_tokens: length of visual prompt and text together, in positions.
        seed: the seed that was used; `None` for greedy.
        timing: where the time went.
        others: the other completions, if several were requested (`n`).
        ranking: every candidate of a ranking, most likely first.
        cached_prompt_tokens: those of `prompt_tokens` that were taken from the prefix cache; `None`
            where that is not known, as of vLLM.
    """

    prompt_tokens: int
    seed: int | None
    timing: Timing
    others: tuple[Completion, ...] = ()
    ranking: tuple[RankedCandidate, ...] = ()
    cached_prompt_tokens: int | None = None

    def _repr_html_(self) -> str:
        timing = self.timing
        seconds = timing.vision_s + timing.queue_s + timing.prefill_s + timing.decode_s
        return html_from_answer(
            [one.text for one in (self, *self.others)],
            [self.finish_reason, f"{self.completion_tokens} tokens", f"{seconds:.2f} s"],
            [(one.text, one.logprob) for one in self.ranking],
        )


Event = TextDelta | Answer
"""An answer is any number of `TextDelta`, then one `Answer`."""


class Generation(Protocol):
    """A submitted request. Iterating waits for its events; the last one is the `Answer`.

    Iterating raises what made the request fail: `DeadlineError` (its deadline passed),
    `EngineError` (the engine failed, or was closed). One thread iterates; `cancel` may be called
    from any thread. A request whose `Generation` is dropped unfinished is cancelled.
    """

    def __iter__(self) -> Iterator[Event]: ...

    def cancel(self) -> None:
        """Stops the request within one step. Its last event is an `Answer` with `cancelled`."""

    def result(self) -> Answer:
        """Waits for the end and returns the answer."""


@dataclass(frozen=True, kw_only=True)
class EngineStatus:
    """What an engine is doing now, and its totals since it was opened.

    Attributes:
        slots: sequences that it can run at once.
        slots_used: slots that a sequence occupies.
        running: requests that have slots.
        waiting: requests in the queue.
        requests: number of ended requests by `Outcome`; every outcome is a key. A request that was
            refused as faulty is not counted.
        generated_tokens: tokens of every answer and beam, including cancelled answers.
        prompt_tokens: positions that were read, visual prompts included.
        cached_prompt_tokens: positions whose keys and values another prompt had left in a slot.
        queue_s, prefill_s, decode_s: total seconds of the ended requests, as in their `Timing`.
            Requests that run together are each counted in full.
        distributions: of the same requests and steps; the engine adds to them no more.
    """

    slots: int
    slots_used: int
    running: int
    waiting: int
    requests: Mapping[Outcome, int]
    generated_tokens: int
    prompt_tokens: int
    cached_prompt_tokens: int
    queue_s: float
    prefill_s: float
    decode_s: float
    distributions: Distributions = field(default_factory=Distributions)


class LanguageModelEngine(Protocol):
    """Answers requests in order of their priority and arrival, as many at once as it can.

    Thread-safe.
    """

    def submit(self, request: GenerationRequest) -> Generation:
        """Queues the request and returns at once.

        Raises:
            OptionError, InputError: the request does not fit this model (prompt too long, wrong
                visual prompt).
            QueueFullError: the queue is full.
            EngineError: the engine is closed.
        """

    def check(self, prompt: str, images: int, options: GenerationOptions) -> None:
        """Refuses what `submit` would refuse, before any image is encoded.

        Raises:
            OptionError, InputError: as `submit`, but for the visual prompt.
        """

    def check_queue(self, ahead: int) -> None:
        """Refuses a request before anything is computed for it.

        Args:
            ahead: requests that are sure to be submitted before it.

        Raises:
            QueueFullError: behind them it would meet a full queue.
        """

    def status(self) -> EngineStatus:
        """What the engine is doing, and its totals. Cheap; works on a closed engine too."""
        ...

    def close(self) -> None:
        """Ends every request with `EngineError`, then frees the engine."""
