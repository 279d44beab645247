"""One answer as it is generated: tokens in, text out, until there is a reason to stop.

This module knows nothing of the model, of time, or of other requests, so the same code serves an
engine that runs one request at a time and one that runs many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iblip.engines.language_model.detokenise import Detokeniser
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.stopping import StopStrings
from iblip.engines.language_model.types import (
    Answer,
    Completion,
    FinishReason,
    RankedCandidate,
    TextDelta,
    Timing,
    TokenLogprob,
)
from iblip.engines.types import PromptIds
from iblip.export.artifact.manifest import LanguageModelFacts
from iblip.export.errors import InputError, OptionError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class AnswerLimits:
    """The limits of one answer, settled from its options, its prompt and the model's length.

    Attributes:
        prompt_tokens: length of visual prompt and text together, in positions.
        max_tokens: the most tokens of the answer, or of each candidate in a ranking.
        context: ids that count as generated already, for the repetition penalty and its like.
        stop: strings that end an answer.
        min_tokens: the answer cannot end before this many tokens.
        echo: ids that the answer begins with, before the first that is generated.
    """

    prompt_tokens: int
    max_tokens: int
    context: tuple[int, ...]
    stop: tuple[str, ...] = ()
    min_tokens: int = 0
    echo: tuple[int, ...] = ()


def settle_limits(
    prompt: PromptIds,
    options: GenerationOptions,
    facts: LanguageModelFacts,
    stop: Sequence[str] = (),
) -> AnswerLimits:
    """Fits an answer into the model's length.

    An answer ends with `length` at `max_new_tokens` (or `max_length`) or where the model's
    positions end, whichever comes first. An encoder-decoder's answer has all positions for itself.
    A candidate may fill all of the model's positions.

    As in transformers, the repetition penalty of a decoder-only model counts the image
    placeholders and the prompt as generated, unless its scope is the answer, which begins with the
    start token if the original's does; that of an encoder-decoder counts only the start token.

    Args:
        prompt: the tokenised prompt.
        options: how to generate.
        facts: of the model.
        stop: strings that end any answer of this model.

    Raises:
        InputError: the prompt leaves no room for an answer.
        OptionError: `max_length` leaves no room either; `min_new_tokens` or `min_length` is more
            than can be generated; or `echo` is set for an encoder-decoder.
    """
    used = prompt.positions(facts.num_query_tokens)
    room = facts.max_length - (0 if facts.is_encoder_decoder else used)
    if used >= facts.max_length:
        raise InputError(
            f"the prompt has {len(prompt.ids)} tokens, and its images {used - len(prompt.ids)}"
            f" positions; this model holds {facts.max_length}, answer included. Shorten the prompt."
        )
    counted = 1 if facts.is_encoder_decoder else used  # of max_length, before the answer begins
    asked = _find_max_tokens(options, counted, facts)
    max_tokens = room if options.candidates else min(asked, room)
    return AnswerLimits(
        prompt_tokens=used,
        max_tokens=max_tokens,
        context=_find_context(prompt, options, facts),
        stop=(*options.stop, *stop),
        min_tokens=_find_min_tokens(options, counted, max_tokens),
        echo=_find_echo(prompt, options, facts),
    )


def _find_max_tokens(options: GenerationOptions, counted: int, facts: LanguageModelFacts) -> int:
    """The most tokens of answer that the options allow, after `counted` ones of `max_length`."""
    if options.max_length is None:
        return options.max_new_tokens or facts.default_max_new_tokens
    if options.max_length <= counted:
        what = "the start token takes" if facts.is_encoder_decoder else "image and prompt take"
        raise OptionError(
            f"max_length is {options.max_length}; {what} {counted} of it, which leaves no room for "
            f"an answer. Raise it above {counted}, or give max_new_tokens instead."
        )
    return options.max_length - counted


def _find_min_tokens(options: GenerationOptions, counted: int, max_tokens: int) -> int:
    """The fewest tokens of answer that the options allow."""
    min_tokens = max(options.min_new_tokens, options.min_length - counted)
    if min_tokens > max_tokens:
        name = "min_length" if options.min_length else "min_new_tokens"
        note = f", which is {min_tokens} tokens of answer" if options.min_length else ""
        raise OptionError(
            f"{name} is {getattr(options, name)}{note}; at most {max_tokens} tokens can be "
            "generated for this prompt. Lower it, or raise max_new_tokens (or max_length)."
        )
    return min_tokens


def _find_context(
    prompt: PromptIds, options: GenerationOptions, facts: LanguageModelFacts
) -> tuple[int, ...]:
    if facts.is_encoder_decoder:
        start = facts.decoder_start_token_id
        return () if start is None else (start,)
    if options.penalty_scope == "answer":
        return () if facts.start_token_id is None else (facts.start_token_id,)
    image = facts.image_token_id
    return prompt.ids if image is None else tuple(prompt.fill(image))


def _find_echo(
    prompt: PromptIds, options: GenerationOptions, facts: LanguageModelFacts
) -> tuple[int, ...]:
    """The prompt as `generate` of transformers has it, a placeholder for every image position."""
    if not options.echo:
        return ()
    if facts.is_encoder_decoder:
        raise OptionError(
            "echo is true; this model is an encoder-decoder, whose answer is a sequence of its "
            "own, without the prompt (as in transformers). Leave it out."
        )
    image = facts.image_token_id
    if image is None:
        return prompt.ids
    return tuple(prompt.fill(*[image] * facts.num_query_tokens))


class CompletionBuilder:
    """One completion: tokens in, text out.

    Args:
        options: say what ends it.
        limits: of the answer.
        facts: of the model.
        tokenizer: the language model's.
        special: its `detokenise.special_tokens`, where the caller has them.

    Attributes:
        finish_reason: `None` until it is complete.
    """

    def __init__(
        self,
        options: GenerationOptions,
        limits: AnswerLimits,
        facts: LanguageModelFacts,
        tokenizer: Tokenizer,
        special: frozenset[str] | None = None,
    ) -> None:
        self.finish_reason: FinishReason | None = None
        self._max_tokens = limits.max_tokens
        self._ends: dict[int, FinishReason] = dict.fromkeys(options.stop_token_ids, "stop")
        self._ends |= dict.fromkeys(facts.eos_token_ids, "eos")
        self._stops = StopStrings(limits.stop)
        self._detokeniser = Detokeniser(tokenizer, special, bytes_apart=facts.bytes_apart)
        self._echoed = len(limits.echo)
        self._ids = list(limits.echo)
        self._closed = 0  # tokens that end: 0 or 1
        self._unsent = self._echoed  # tokens since the last delta
        self._texts: list[str] = []
        # One text, as transformers decodes it; no stop string is looked for in the prompt.
        self._prompt = "".join(self._detokeniser.feed(token) for token in limits.echo)

    def add(self, token: int) -> TextDelta | None:
        """Takes the next token; returns the text that can now be shown, if any."""
        if token in self._ends:
            self._closed = 1
            return self._finish(self._ends[token])
        self._ids.append(token)
        self._unsent += 1
        text = self._stops.feed(self._detokeniser.feed(token))
        if self._stops.stopped:
            self.finish_reason = "stop"
        elif len(self._ids) - self._echoed >= self._max_tokens:
            return self._finish("length", text)
        return self._delta(text)

    def completion(
        self, logprobs: Sequence[TokenLogprob] | None = None, score: float | None = None
    ) -> Completion:
        """The completion so far; its finish reason is `cancelled` if it is not complete."""
        return Completion(
            text="".join(self._texts),
            token_ids=tuple(self._ids),
            finish_reason=self.finish_reason or "cancelled",
            completion_tokens=len(self._ids) - self._echoed + self._closed,
            logprobs=None if logprobs is None else tuple(logprobs),
            score=score,
        )

    def _finish(self, reason: FinishReason, text: str = "") -> TextDelta | None:
        # What was held back comes out now, and may complete a stop string.
        text += self._stops.feed(self._detokeniser.flush())
        self.finish_reason = "stop" if self._stops.stopped else reason
        return self._delta(text + self._stops.flush())

    def _delta(self, text: str) -> TextDelta | None:
        text, self._prompt = self._prompt + text, ""
        if not text:
            return None
        self._texts.append(text)
        count, self._unsent = self._unsent, 0
        return TextDelta(text=text, token_ids=tuple(self._ids[len(self._ids) - count :]))


def answer_from_completions(
    completions: Sequence[Completion],
    limits: AnswerLimits,
    timing: Timing,
    seed: int | None,
    ranking: Sequence[RankedCandidate] = (),
) -> Answer:
    """The answer made of these completions, which are given best first."""
    first, *others = completions
    return Answer(
        **vars(first),
        prompt_tokens=limits.prompt_tokens,
        seed=seed,
        timing=timing,
        others=tuple(others),
        ranking=tuple(ranking),
    )
