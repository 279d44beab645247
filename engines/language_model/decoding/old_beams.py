"""Beam search as transformers 4 scored it, up to 4.33: what LAVIS's answers were made with.

A beam's length there is that of its ids, the token that it starts with among them and the one that
closes it not: as many as here, but one more of a beam that is cut off at the limit. And a search
goes on while any continuation, one that just ended among them, could beat the worst beam kept, at
a length of one more. Knows nothing of graphs or text.

Source: transformers 4.33, `generation/beam_search.py`, `BeamSearchScorer` and `BeamHypotheses`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from iblip.engines.language_model.decoding.beams import Beam, BeamSearch, Continuation


class OldBeamSearch(BeamSearch):
    """As `BeamSearch`, with the scores and the end of transformers 4.33's."""

    def _settle(self, made: Sequence[Continuation]) -> list[int]:
        length = len(made[0].beam.tokens)
        self._finish([one.beam for one in made[: self._width] if one.closed])
        going = [one for one in made if not one.closed][: self._width]
        self.running = [one.beam for one in going]
        self.done = not going or self._beats(made[0].beam, length + 1)
        if length >= self._limit and not self.done:
            self._finish(self.running, extra=1)
            self.running, self.done = [], True
        return [one.parent for one in going]

    def _beats(self, best: Beam, length: int) -> bool:
        """Whether nothing can come of so good a beam that is better than those finished."""
        if len(self.finished) < self._width:
            return False
        if self._early is True:
            return True
        if self._early == "never" and self._penalty > 0:
            length = self._limit + 1
        return bool(self.finished[-1].score >= best.score / np.float32(length**self._penalty))
