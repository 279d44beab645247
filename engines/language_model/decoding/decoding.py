"""How a request's sequences go on: logits of its rows in, the rows of its next step out.

All that a scheduler knows of a request is how many rows it may take, and which rows its next step
has. A row that goes on in two ways is forked; a row that goes on in none is freed. This module
knows nothing of the model, of time, or of other requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from iblip.engines.language_model.answering import (
    AnswerLimits,
    CompletionBuilder,
    answer_from_completions,
)
from iblip.engines.language_model.decoding.beams import Beam, BeamSearch
from iblip.engines.language_model.decoding.grammars import Grammar
from iblip.engines.language_model.decoding.logits_processors import LogitsProcessors, Words
from iblip.engines.language_model.decoding.ranking import CandidateTree
from iblip.engines.language_model.decoding.sampling import Sampler, choose_seed
from iblip.engines.language_model.decoding.transformers4_beams import Transformers4BeamSearch
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import (
    Answer,
    Completion,
    RankedCandidate,
    TextDelta,
    Timing,
)
from iblip.export.artifact.manifest import LanguageModelFacts


@dataclass(frozen=True)
class Branch:
    """One row of a request's next step.

    Attributes:
        parent: index of the row of this step that it continues.
        token: what it continues with.
        back: how many of the parent's last tokens it takes back first.
    """

    parent: int
    token: int
    back: int = 0


Spare = Callable[[], int]
"""How many rows are free and not wanted by any request. Below 0, the next request in line lacks
that many; a request that can do with fewer rows is then expected to give some up."""


class Decoding(Protocol):
    """One request's way of generating."""

    @property
    def width(self) -> int:
        """How many rows must be reserved for it from now on."""
        ...

    def accept(self, logits: npt.NDArray[Any], spare: Spare) -> Sequence[Branch]:
        """Takes the logits `[rows, vocab]` of its rows, one row for the first token.

        Returns the rows of the next step; none once the answer is complete. They are at most
        `width`, or as many as it has now plus those that are `spare`.

        Raises:
            EngineError: the logits are not numbers.
        """
        ...

    def take_delta(self) -> TextDelta | None:
        """The text that can be shown since the last call, if any."""
        ...

    def answer(self, timing: Timing) -> Answer:
        """The answer so far."""
        ...


class Samples:
    """Greedy search, or one or more sampled answers: a row each.

    Args:
        options: how to choose; `n` is how many.
        limits: of the answer.
        processors: the logits processors of the same options.
        builder: makes an empty completion.
        grammar: of every answer; `None` allows any text.
    """

    def __init__(
        self,
        options: GenerationOptions,
        limits: AnswerLimits,
        processors: LogitsProcessors,
        builder: Callable[[], CompletionBuilder],
        grammar: Grammar | None = None,
    ) -> None:
        self.width = options.n
        self._limits = limits
        self._seed = choose_seed(options)
        self._rows = [
            (
                Sampler(
                    options,
                    processors,
                    seed=self._seed,
                    index=index,
                    constraint=None if grammar is None else grammar.begin(),
                ),
                builder(),
            )
            for index in range(options.n)
        ]
        self._live = [0] * options.n  # each completion's row in the last step
        self._reports = options.logprobs is not None
        self._delta: TextDelta | None = None

    def accept(self, logits: npt.NDArray[Any], spare: Spare) -> Sequence[Branch]:
        """See `Decoding`."""
        branches: list[Branch] = []
        for index, (sampler, builder) in enumerate(self._rows):
            if builder.finish_reason is None:
                row = self._live[index]
                token = sampler(logits[row])
                delta = builder.add(token)
                self._delta = delta if index == 0 else self._delta
                if builder.finish_reason is None:
                    self._live[index] = len(branches)
                    branches.append(Branch(row, token))
        self.width = len(branches)
        return branches

    def take_delta(self) -> TextDelta | None:
        """The new text of the first completion, if any."""
        delta, self._delta = self._delta, None
        return delta

    def answer(self, timing: Timing) -> Answer:
        """See `Decoding`."""
        completions = [
            builder.completion(sampler.logprobs if self._reports else None)
            for sampler, builder in self._rows
        ]
        return answer_from_completions(completions, self._limits, timing, self._seed)


SEARCHES: Mapping[str, type[BeamSearch]] = {"v5": BeamSearch, "v4": Transformers4BeamSearch}
"""By `GenerationOptions.beam_scorer`."""


class Beams:
    """Beam search: a row a beam. The text is shown at the end.

    Args:
        options: how to search; `n` is how many of the best are wanted.
        limits: of the answer.
        processors: the logits processors of the same options.
        builder: makes an empty completion.
        ends: tokens that end a beam.
        stopped: whether a beam's last token completes a stop string.
    """

    def __init__(
        self,
        options: GenerationOptions,
        limits: AnswerLimits,
        processors: LogitsProcessors,
        builder: Callable[[], CompletionBuilder],
        ends: Sequence[int],
        stopped: Callable[[tuple[int, ...]], bool],
    ) -> None:
        self.width = options.num_beams
        self._count, self._limits, self._builder = options.n, limits, builder
        self._search = SEARCHES[options.beam_scorer](
            width=options.num_beams,
            limit=limits.max_tokens,
            ends=ends,
            length_penalty=1.0 if options.length_penalty is None else options.length_penalty,
            early_stopping=options.early_stopping,
            process_logits=processors,
            stopped=stopped,
        )
        self._delta: TextDelta | None = None

    def accept(self, logits: npt.NDArray[Any], spare: Spare) -> Sequence[Branch]:
        """See `Decoding`."""
        parents = self._search.accept(logits)
        if self._search.done:
            text, ids = self._build_completions()[0].text, self._build_completions()[0].token_ids
            self._delta = TextDelta(text=text, token_ids=ids) if text else None
            return ()
        running = self._search.running
        return [
            Branch(parent, beam.tokens[-1]) for parent, beam in zip(parents, running, strict=True)
        ]

    def take_delta(self) -> TextDelta | None:
        """See `Decoding`."""
        delta, self._delta = self._delta, None
        return delta

    def answer(self, timing: Timing) -> Answer:
        """The best finished beams; an empty answer before the search is done."""
        return answer_from_completions(self._build_completions(), self._limits, timing, None)

    def _build_completions(self) -> list[Completion]:
        if not self._search.done:
            return [self._builder().completion()]
        return [self._build_completion(beam) for beam in self._search.finished[: self._count]]

    def _build_completion(self, beam: Beam) -> Completion:
        builder = self._builder()
        for token in beam.tokens:
            builder.add(token)
            if builder.finish_reason is not None:
                break  # a stop string is cut off
        return builder.completion(score=float(beam.score))


class Ranking:
    """Scores candidates: in one row, and in any others that are spare. Text is shown at the end.

    Args:
        options: the candidates, and the length penalty.
        limits: of the answer.
        facts: of the model.
        candidates: token ids of each candidate, with those that close it.
    """

    def __init__(
        self,
        options: GenerationOptions,
        limits: AnswerLimits,
        facts: LanguageModelFacts,
        candidates: Words,
    ) -> None:
        self.width = 1
        self._texts, self._penalty = options.candidates, options.length_penalty or 0.0
        self._limits, self._ids = limits, [tuple(tokens) for tokens in candidates]
        self._ends = frozenset(facts.eos_token_ids)
        self._tree = CandidateTree(self._ids)
        self._rows = 1
        self._ranking: tuple[RankedCandidate, ...] = ()
        self._delta: TextDelta | None = None

    def accept(self, logits: npt.NDArray[Any], spare: Spare) -> Sequence[Branch]:
        """See `Decoding`."""
        moves = self._tree.accept(logits, max(1, self._rows + spare()))
        self._rows = len(moves)
        if not moves:
            self._ranking = self._rank()
            best = self._best()
            self._delta = TextDelta(text=best.text, token_ids=best.token_ids)
        return [Branch(parent, token, back) for parent, back, token in moves]

    def take_delta(self) -> TextDelta | None:
        """See `Decoding`."""
        delta, self._delta = self._delta, None
        return delta

    def answer(self, timing: Timing) -> Answer:
        """The most likely candidate; an empty answer before all are scored."""
        return answer_from_completions([self._best()], self._limits, timing, None, self._ranking)

    def _rank(self) -> tuple[RankedCandidate, ...]:
        candidates = [
            RankedCandidate(
                index=index,
                text=text,
                token_ids=ids,
                logprob=logprob,
                score=logprob / len(ids) ** self._penalty,
            )
            for index, (text, ids, logprob) in enumerate(
                zip(self._texts, self._ids, self._tree.logprobs, strict=True)
            )
        ]
        return tuple(sorted(candidates, key=lambda candidate: -candidate.score))

    def _best(self) -> Completion:
        if not self._ranking:
            return Completion(text="", token_ids=(), finish_reason="cancelled", completion_tokens=0)
        best = self._ranking[0]
        ids = best.token_ids
        return Completion(
            text=best.text,
            token_ids=ids[:-1] if ids[-1] in self._ends else ids,
            finish_reason="ranked",
            completion_tokens=len(ids),
            score=best.score,
        )


def decoding_for(
    options: GenerationOptions,
    limits: AnswerLimits,
    facts: LanguageModelFacts,
    builder: Callable[[], CompletionBuilder],
    banned: Words = (),
    candidates: Words = (),
    stopped: Callable[[tuple[int, ...]], bool] = lambda tokens: False,
    grammar: Grammar | None = None,
) -> Decoding:
    """The way of generating that these options ask for.

    Args:
        options: how to generate.
        limits: of the answer.
        facts: of the model.
        builder: makes an empty completion.
        banned: token ids of every banned word.
        candidates: token ids of every candidate.
        stopped: whether the last of some tokens completes a stop string.
        grammar: of the answer, where the options have a JSON schema.
    """
    if candidates:
        return Ranking(options, limits, facts, candidates)
    ends = tuple(dict.fromkeys((*facts.eos_token_ids, *options.stop_token_ids)))
    processors = LogitsProcessors(
        options,
        ends=ends,
        context=limits.context,
        banned=banned,
        min_tokens=limits.min_tokens,
    )
    if options.num_beams > 1:
        return Beams(options, limits, processors, builder, ends, stopped)
    return Samples(options, limits, processors, builder, grammar)
