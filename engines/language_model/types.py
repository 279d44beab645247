"""What goes into a language-model engine, and what comes out: requests, events, answers.

The interface says nothing of how many requests run at once, of how a sequence is decoded, or in
which process: an engine that runs one request at a time, one that batches continuously, and one
that forwards to another server all stand behind `LanguageModelEngine`. Knows numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy.typing as npt

from iblip.engines.language_model.options import GenerationOptions

FinishReason = Literal["eos", "stop", "length", "ranked", "cancelled"]
"""Why an answer ended: an end-of-sequence token, a stop string or stop token, `max_new_tokens` (or
the model's length), being the likeliest of some candidates, or the caller."""

Outcome = Literal["eos", "stop", "length", "ranked", "cancelled", "late", "failed", "refused"]
"""How a request ended: with an answer, after its deadline, by a failure, or at a full queue."""


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One question for the engine.

    Attributes:
        prompt: as the user wrote it; the engine applies the family's template and tokenises.
        visual_prompt: float32 or float16 `[images, queries, d_llm]`.
        options: how to generate.
        deadline: `time.monotonic()` seconds after which the request is given up with
            `DeadlineError`; `None` waits for ever.
        vision_s: seconds that the visual prompt took, for the answer's `Timing`.
    """

    prompt: str
    visual_prompt: npt.NDArray[Any]
    options: GenerationOptions = field(default_factory=GenerationOptions)
    deadline: float | None = None
    vision_s: float = 0.0


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
    """Where an answer's time went, in seconds: one after another, in this order.

    Attributes:
        vision_s: until the visual prompt was there: the image's encoding, or finding it encoded,
            the Q-Former, the prompt's tokens, and all waiting for these.
        queue_s: until there were slots for it.
        prefill_s: until the prompt was read, the turns of others between its pieces included.
        decode_s: until the end.
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
        top: the likeliest tokens there and their log-probabilities, the likeliest first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class RankedCandidate:
    """One of the answers to choose from, with how likely it is.

    Attributes:
        index: its place among the candidates as they were given.
        text: as it was given.
        token_ids: those that count. An encoder-decoder's has its closing end-of-sequence token, a
            decoder-only model's has none, as in LAVIS.
        logprob: the sum of their log-probabilities, in nats.
        score: what they are ranked by: `logprob / len(token_ids) ** length_penalty`.
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
        logprobs: of every generated token, a closing one included; `None` where not asked for.
        score: of a beam search or a ranking, the sum of log-probabilities with the penalty of
            length.
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
        prompt_tokens: visual prompt and text, in positions.
        seed: the one that was used; `None` for greedy.
        timing: where the time went.
        others: the other completions, where several were asked for (`n`).
        ranking: every candidate, the likeliest first, where there were any to choose from.
    """

    prompt_tokens: int
    seed: int | None
    timing: Timing
    others: tuple[Completion, ...] = ()
    ranking: tuple[RankedCandidate, ...] = ()


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


@dataclass(frozen=True, kw_only=True)
class EngineStatus:
    """What an engine is doing now, and what it has done since it was opened.

    Attributes:
        slots: sequences that it can run at once.
        slots_used: of those, taken by a sequence.
        running: requests that have slots.
        waiting: requests in the queue.
        requests: that have ended, by how; every `Outcome` is there. A request that was refused as
            faulty is in none.
        generated_tokens: of every answer and beam, the tokens of cancelled answers included.
        prompt_tokens: positions that were read, visual prompts included.
        queue_s, prefill_s, decode_s: seconds of the requests that have ended, as in their `Timing`.
            Requests that run together are each counted in full.
    """

    slots: int
    slots_used: int
    running: int
    waiting: int
    requests: Mapping[Outcome, int]
    generated_tokens: int
    prompt_tokens: int
    queue_s: float
    prefill_s: float
    decode_s: float


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

    def status(self) -> EngineStatus:
        """What the engine is doing, and has done. Cheap; also when it is closed."""
        ...

    def close(self) -> None:
        """Ends every request with `EngineError`, then frees the engine."""
