"""How a request's sequences go on: logits of its rows in, the rows of its next step out.

A scheduler knows of a request only this: how many rows it may take, and which rows its next step
has. A row that goes on in two ways is forked, one that goes on in none is freed. Knows nothing of
the model, of time, or of other requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from iblip.engines.language_model.answering import (
    AnswerPlan,
    CompletionBuilder,
    answer_from_completions,
)
from iblip.engines.language_model.decoding.beams import Beam, BeamSearch
from iblip.engines.language_model.decoding.logits_processors import Restraints, Words
from iblip.engines.language_model.decoding.old_beams import OldBeamSearch
from iblip.engines.language_model.decoding.ranking import CandidateTree
from iblip.engines.language_model.decoding.sampling import Sampler, seed_for
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
"""How many more rows there are than anybody wants; below 0, so many are wanted by the next in
line. Whoever can do with fewer rows than it has is expected to, then."""


class Decoding(Protocol):
    """One request's way of generating."""

    @property
    def width(self) -> int:
        """The rows that must be there for it from now on."""
        ...

    def accept(self, logits: npt.NDArray[Any], spare: Spare) -> Sequence[Branch]:
        """Takes the logits `[rows, vocab]` of its rows, one row for the first token.

        Returns the rows of the next step; none where the answer is complete. They are at most
        `width`, or as many as it has and those that are `spare`.

        Raises:
            EngineError: the logits are not numbers.
        """
        ...

    def take_delta(self) -> TextDelta | None:
        """What can be shown since the last call, if anything."""
        ...

    def answer(self, timing: Timing) -> Answer:
        """The answer as far as it is."""
        ...


class Samples:
    """Greedy search, or one or more draws: a row each.

    Args:
        options: how to choose; `n` is how many.
        plan: what the answer may be.
        restraints: from the same options.
        builder: makes an empty completion.
    """

    def __init__(
        self,
        options: GenerationOptions,
        plan: AnswerPlan,
        restraints: Restraints,
        builder: Callable[[], CompletionBuilder],
    ) -> None:
        self.width = options.n
        self._plan = plan
        self._seed = seed_for(options)
        self._rows = [
            (Sampler(options, restraints, seed=self._seed, index=index), builder())
            for index in range(options.n)
        ]
        self._live = [0] * options.n  # by completion: its row of the last step
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
        """What is new of the first completion."""
        delta, self._delta = self._delta, None
        return delta

    def answer(self, timing: Timing) -> Answer:
        """See `Decoding`."""
        completions = [
            builder.completion(sampler.logprobs if self._reports else None)
            for sampler, builder in self._rows
        ]
        return answer_from_completions(completions, self._plan, timing, self._seed)


SEARCHES: Mapping[str, type[BeamSearch]] = {"v5": BeamSearch, "v4": OldBeamSearch}
"""By `beam_scorer`."""


class Beams:
    """Beam search: a row a beam. All of the text is shown at the end.

    Args:
        options: how to search; `n` is how many of the best are wanted.
        plan: what the answer may be.
        restraints: from the same options.
        builder: makes an empty completion.
        ends: tokens that end a beam.
        stopped: whether a beam's last token completes a stop string.
    """

    def __init__(
        self,
        options: GenerationOptions,
        plan: AnswerPlan,
        restraints: Restraints,
        builder: Callable[[], CompletionBuilder],
        ends: Sequence[int],
        stopped: Callable[[tuple[int, ...]], bool],
    ) -> None:
        self.width = options.num_beams
        self._wanted, self._plan, self._builder = options.n, plan, builder
        self._search = SEARCHES[options.beam_scorer](
            width=options.num_beams,
            limit=plan.limit,
            ends=ends,
            length_penalty=1.0 if options.length_penalty is None else options.length_penalty,
            early_stopping=options.early_stopping,
            restrain=restraints,
            stopped=stopped,
        )
        self._delta: TextDelta | None = None

    def accept(self, logits: npt.NDArray[Any], spare: Spare) -> Sequence[Branch]:
        """See `Decoding`."""
        parents = self._search.accept(logits)
        if self._search.done:
            text, ids = self._completions()[0].text, self._completions()[0].token_ids
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
        """The best that has finished; before the search is done, nothing."""
        return answer_from_completions(self._completions(), self._plan, timing, None)

    def _completions(self) -> list[Completion]:
        if not self._search.done:
            return [self._builder().completion()]
        return [self._completion(beam) for beam in self._search.finished[: self._wanted]]

    def _completion(self, beam: Beam) -> Completion:
        builder = self._builder()
        for token in beam.tokens:
            builder.add(token)
            if builder.finish_reason is not None:
                break  # a stop string is cut off
        return builder.completion(score=float(beam.score))


class Ranking:
    """Scores candidates: one row, and as many more as nobody else wants. All is shown at the end.

    Args:
        options: the candidates, and the penalty of length.
        plan: what the answer may be.
        facts: of the model.
        candidates: token ids of each candidate, with those that close it.
    """

    def __init__(
        self,
        options: GenerationOptions,
        plan: AnswerPlan,
        facts: LanguageModelFacts,
        candidates: Words,
    ) -> None:
        self.width = 1
        self._texts, self._penalty = options.candidates, options.length_penalty or 0.0
        self._plan, self._ids = plan, [tuple(tokens) for tokens in candidates]
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
            self._ranking = self._ranked()
            best = self._best()
            self._delta = TextDelta(text=best.text, token_ids=best.token_ids)
        return [Branch(parent, token, back) for parent, back, token in moves]

    def take_delta(self) -> TextDelta | None:
        """See `Decoding`."""
        delta, self._delta = self._delta, None
        return delta

    def answer(self, timing: Timing) -> Answer:
        """The likeliest candidate; before all are scored, nothing."""
        return answer_from_completions([self._best()], self._plan, timing, None, self._ranking)

    def _ranked(self) -> tuple[RankedCandidate, ...]:
        made = [
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
        return tuple(sorted(made, key=lambda candidate: -candidate.score))

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
    plan: AnswerPlan,
    facts: LanguageModelFacts,
    builder: Callable[[], CompletionBuilder],
    banned: Words = (),
    candidates: Words = (),
    stopped: Callable[[tuple[int, ...]], bool] = lambda tokens: False,
) -> Decoding:
    """What these options ask for.

    Args:
        options: how to generate.
        plan: what the answer may be.
        facts: of the model.
        builder: makes an empty completion.
        banned: token ids of every banned word.
        candidates: token ids of every candidate.
        stopped: whether the last of some tokens completes a stop string.
    """
    if candidates:
        return Ranking(options, plan, facts, candidates)
    ends = tuple(dict.fromkeys((*facts.eos_token_ids, *options.stop_token_ids)))
    restraints = Restraints(
        options, ends=ends, context=plan.context, banned=banned, least=plan.least
    )
    if options.num_beams > 1:
        return Beams(options, plan, restraints, builder, ends, stopped)
    return Samples(options, plan, restraints, builder)
