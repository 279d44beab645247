"""What a request forbids or disfavours, as changes to the scores of the next token.

The order is that of transformers' logits processors: bias, repetition penalty, repeated n-grams,
banned words, minimum length. Knows nothing of how a token is then chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from iblip.engines.language_model.options import GenerationOptions
from iblip.export.errors import OptionError

Scores = npt.NDArray[np.float32]
"""`[vocab]`: logits, or log-probabilities in a beam search."""

Ids = npt.NDArray[np.int64]

Words = Sequence[Sequence[int]]


class Restraints:
    """What one request's options do to the scores of every next token.

    Args:
        options: the request's.
        ends: tokens that end an answer: forbidden before its least length.
        context: ids that count as said before the first token, as `penalty_scope` has it: the image
            placeholders and the prompt of a decoder-only model, the start token of an
            encoder-decoder. Ids outside the vocabulary are allowed and without effect.
        banned: token ids of each banned word, none of them empty.
        least: tokens of answer before which it cannot end; `None` is `min_new_tokens`.
    """

    def __init__(
        self,
        options: GenerationOptions,
        *,
        ends: Sequence[int],
        context: Sequence[int] = (),
        banned: Words = (),
        least: int | None = None,
    ) -> None:
        self._options = options
        self._least = options.min_new_tokens if least is None else least
        self._ends = np.array(ends, dtype=np.int64)
        self._context = list(context)
        self._banned = banned
        self._biased = np.array(list(options.logit_bias), dtype=np.int64)
        self._bias = np.array(list(options.logit_bias.values()), dtype=np.float32)

    def __call__(self, scores: Scores, tokens: Sequence[int]) -> None:
        """Changes `scores` in place; `tokens` is the answer so far.

        Raises:
            OptionError: the options together forbid every token.
        """
        options = self._options
        said = [*self._context, *tokens]
        if self._biased.size:
            scores[self._biased] += self._bias
        if options.repetition_penalty != 1.0:
            penalise(scores, np.array(said, np.int64), options.repetition_penalty)
        if options.no_repeat_ngram_size:
            forbid(scores, repeats(said, options.no_repeat_ngram_size))
        if self._banned:
            forbid(scores, completions(said, self._banned))
        if len(tokens) < self._least:
            scores[self._ends] = -np.inf
        if scores.max() == -np.inf:
            raise OptionError(
                "no_repeat_ngram_size, banned_words, min_new_tokens (or min_length) and logit_bias "
                f"together forbid every token after {len(tokens)} tokens of the answer. Relax one "
                "of them."
            )


def penalise(scores: Scores, said: Ids, penalty: float) -> None:
    """Divides the positive scores of `said` by `penalty`, multiplies the negative, in place.

    Each id once, however often it was said. Ids outside the vocabulary are passed over.

    Source: Keskar et al. 2019, CTRL, section 4.1; transformers' RepetitionPenaltyLogitsProcessor.
    """
    ids = said[(said >= 0) & (said < scores.size)]
    found = scores[ids]
    scale = np.float32(penalty)
    scores[ids] = np.where(found < 0, found * scale, found / scale)


def forbid(scores: Scores, ids: Sequence[int]) -> None:
    """Makes these ids impossible. Ids outside the vocabulary are passed over."""
    scores[[i for i in ids if 0 <= i < scores.size]] = -np.inf


def repeats(said: Sequence[int], size: int) -> list[int]:
    """Ids that would complete a run of `size` ids which `said` has already."""
    last = list(said[len(said) - size + 1 :])
    if len(last) < size - 1:
        return []
    starts = range(len(said) - size + 1)
    return [said[at + size - 1] for at in starts if list(said[at : at + size - 1]) == last]


def completions(said: Sequence[int], words: Words) -> list[int]:
    """Last ids of the words whose other ids `said` ends with."""
    return [
        word[-1]
        for word in words
        if len(word) == 1 or tuple(said[1 - len(word) :]) == tuple(word[:-1])
    ]
