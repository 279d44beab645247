"""Beam search as transformers up to 4.33 scored it: LAVIS's answers were generated with it.

There a beam's length counts the token that it starts with and not the one that closes it. That is
the same number as in `beams`, but one more for a beam that is cut off at the limit. A search goes
on while any continuation, including one that has just ended, could beat the worst finished beam at
a length of one more. This module knows nothing of graphs or text.

Source: transformers 4.33, `generation/beam_search.py`, `BeamSearchScorer` and `BeamHypotheses`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from iblip.engines.language_model.decoding.beams import Beam, BeamSearch, Continuation


class Transformers4BeamSearch(BeamSearch):
    """`BeamSearch` with the scores and the stopping rule of transformers 4.33."""

    def _select(self, continuations: Sequence[Continuation]) -> list[int]:
        length = len(continuations[0].beam.tokens)
        self._finish([c.beam for c in continuations[: self._width] if c.closed])
        going = [c for c in continuations if not c.closed][: self._width]
        self.running = [c.beam for c in going]
        self.done = not going or self._cannot_improve(continuations[0].beam, length + 1)
        if length >= self._limit and not self.done:
            self._finish(self.running, extra=1)
            self.running, self.done = [], True
        return [c.parent for c in going]

    def _cannot_improve(self, best: Beam, length: int) -> bool:
        """Whether no continuation of `best` can beat the worst finished beam."""
        if len(self.finished) < self._width:
            return False
        if self._early is True:
            return True
        if self._early == "never" and self._penalty > 0:
            length = self._limit + 1
        return bool(self.finished[-1].score >= best.score / np.float32(length**self._penalty))
