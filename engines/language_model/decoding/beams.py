"""Beam search, as transformers' `generate` does it: several answers grow, the best one stays.

All scores are float32, and ties are broken as transformers breaks them. This module knows nothing
of graphs or text.

Source: transformers' `GenerationMixin._beam_search`, whose result this reproduces; the length
penalty is that of Wu et al. 2016, section 7, without its constants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from iblip.engines.language_model.decoding.logits_processors import Scores
from iblip.engines.language_model.decoding.sampling import log_probabilities, scores_from_logits

EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True)
class Beam:
    """One sequence of the search.

    Attributes:
        tokens: chosen so far.
        score: the sum of their log-probabilities; once finished, with the length penalty.
    """

    tokens: tuple[int, ...]
    score: np.float32


@dataclass(frozen=True)
class Continuation:
    """A beam and one more token.

    Attributes:
        parent: index of the beam that it continues.
        beam: with the token.
        closed: the token ends it.
    """

    parent: int
    beam: Beam
    closed: bool


class BeamSearch:
    """The search for one answer.

    Args:
        width: how many beams, 2 or more.
        limit: most tokens.
        ends: tokens that end a beam.
        length_penalty: scores are divided by length to this power: above 0 favours long answers,
            below 0 short ones; 0 leaves the sums.
        early_stopping: `True` stops at `width` finished beams; `False` when the running ones are
            unlikely to become better; `"never"` when they cannot.
        process_logits: changes log-probabilities `[vocab]` in place, given a beam's tokens.
        stopped: whether the last of a beam's tokens ends it, besides those that always do.

    Attributes:
        running: beams that go on, best first.
        finished: beams that have ended, best first, at most `width`.
        done: nothing goes on.
    """

    def __init__(
        self,
        *,
        width: int,
        limit: int,
        ends: Sequence[int],
        length_penalty: float,
        early_stopping: EarlyStopping,
        process_logits: Callable[[Scores, tuple[int, ...]], None],
        stopped: Callable[[tuple[int, ...]], bool] = lambda tokens: False,
    ) -> None:
        self._width, self._limit, self._ends = width, limit, frozenset(ends)
        self._kept = width * max(2, 1 + len(ends))
        self._penalty, self._early = length_penalty, early_stopping
        self._process_logits, self._stopped = process_logits, stopped
        self.running: list[Beam] = [Beam((), np.float32(0))]
        self.finished: list[Beam] = []
        self.done = False

    def accept(self, logits: npt.NDArray[np.generic]) -> list[int]:
        """Takes the logits `[running, vocab]`; returns for each new beam the index of its parent.

        Raises:
            EngineError: the logits are not numbers.
            OptionError: the logits processors forbid every token.
        """
        scores = np.stack(  # [running, vocab]
            [self._score(row, beam) for row, beam in zip(logits, self.running, strict=True)]
        )
        continuations = []
        for index in _find_greatest(scores.reshape(-1), self._kept):
            parent, token = divmod(int(index), scores.shape[1])
            tokens = (*self.running[parent].tokens, token)
            closed = token in self._ends or self._stopped(tokens)
            continuations.append(Continuation(parent, Beam(tokens, scores[parent, token]), closed))
        return self._select(continuations)

    def _select(self, continuations: Sequence[Continuation]) -> list[int]:
        """Keeps the beams that have ended and those that go on; returns the parents of the latter.

        Args:
            continuations: the best ones, best first.
        """
        full = len(continuations[0].beam.tokens) >= self._limit
        self._finish([c.beam for c in continuations[: self._width] if c.closed or full])
        going = [] if full else [c for c in continuations if not c.closed][: self._width]
        self.running = [c.beam for c in going]
        self.done = self._is_done()
        return [c.parent for c in going]

    def _score(self, logits: npt.NDArray[np.generic], beam: Beam) -> Scores:
        values = log_probabilities(scores_from_logits(logits))
        self._process_logits(values, beam.tokens)
        values += beam.score
        return values

    def _finish(self, ended: Sequence[Beam], *, extra: int = 0) -> None:
        """Adds beams to the finished ones and keeps the best; their lengths grow by `extra`."""
        penalised = [
            Beam(beam.tokens, beam.score / np.float32((len(beam.tokens) + extra) ** self._penalty))
            for beam in ended
        ]
        merged = sorted([*self.finished, *penalised], key=lambda beam: -beam.score)
        self.finished = merged[: self._width]

    def _is_done(self) -> bool:
        if not self.running:
            return True
        if len(self.finished) < self._width:
            return False
        if self._early is True:
            return True
        length = len(self.running[0].tokens)
        if self._early == "never" and self._penalty > 0:
            length = self._limit
        possible = self.running[0].score / np.float32(length**self._penalty)
        return bool(possible <= self.finished[-1].score)


BLOCK = 64
"""Values of a block. A pass over their greatest is much quicker than a partition of all values."""


def _find_greatest(values: Scores, count: int) -> npt.NDArray[np.intp]:
    """Indices of the `count` greatest values above -inf, the greatest first."""
    blocks = np.maximum.reduceat(values, np.arange(0, values.size, BLOCK))
    # `count` blocks have a value that is no less, so the greatest values are not below it.
    least = np.partition(blocks, -count)[-count] if count <= blocks.size else -np.inf
    chosen = np.flatnonzero((values >= least) & (values > -np.inf))
    return chosen[np.argsort(-values[chosen], kind="stable")][:count]
