"""Logits processors: a request's biases, penalties and bans, applied to the next token's scores.

They are applied in transformers' order: bias, repetition penalty, repeated n-grams, banned words,
minimum length. This module knows nothing of how a token is then chosen.
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
"""The token ids of each of several words."""


class LogitsProcessors:
    """The logits processors that one request's options ask for.

    Args:
        options: the request's options.
        ends: tokens that end an answer; they are forbidden before its minimum length.
        context: ids that count as generated before the first token, as `penalty_scope` defines: the
            image placeholders and the prompt of a decoder-only model, the start token of an
            encoder-decoder. Ids outside the vocabulary are allowed and have no effect.
        banned: token ids of each banned word, none of them empty.
        min_tokens: the answer cannot end before this many tokens; `None` is `min_new_tokens`.
    """

    def __init__(
        self,
        options: GenerationOptions,
        *,
        ends: Sequence[int],
        context: Sequence[int] = (),
        banned: Words = (),
        min_tokens: int | None = None,
    ) -> None:
        self._options = options
        self._min_tokens = options.min_new_tokens if min_tokens is None else min_tokens
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
        previous = [*self._context, *tokens]
        if self._biased.size:
            scores[self._biased] += self._bias
        if options.repetition_penalty != 1.0:
            penalise(scores, np.array(previous, np.int64), options.repetition_penalty)
        if options.no_repeat_ngram_size:
            forbid(scores, find_ngram_repeats(previous, options.no_repeat_ngram_size))
        if self._banned:
            forbid(scores, find_word_ends(previous, self._banned))
        if len(tokens) < self._min_tokens:
            scores[self._ends] = -np.inf
        if scores.max() == -np.inf:
            raise OptionError(
                "no_repeat_ngram_size, banned_words, min_new_tokens (or min_length) and logit_bias "
                f"together forbid every token after {len(tokens)} tokens of the answer. Relax one "
                "of them."
            )


def penalise(scores: Scores, previous: Ids, penalty: float) -> None:
    """Divides the positive scores of `previous` by `penalty`, multiplies the negative, in place.

    Each id is penalised once, however often it occurs. Ids outside the vocabulary are ignored.

    Source: Keskar et al. 2019, CTRL, section 4.1; transformers' RepetitionPenaltyLogitsProcessor.
    """
    ids = previous[(previous >= 0) & (previous < scores.size)]
    before = scores[ids]  # [len(ids)]
    scale = np.float32(penalty)
    scores[ids] = np.where(before < 0, before * scale, before / scale)


def forbid(scores: Scores, ids: Sequence[int]) -> None:
    """Sets the scores of these ids to -inf. Ids outside the vocabulary are ignored."""
    scores[[i for i in ids if 0 <= i < scores.size]] = -np.inf


def find_ngram_repeats(previous: Sequence[int], size: int) -> list[int]:
    """Ids that would complete an n-gram of `size` ids that `previous` already contains."""
    last = list(previous[len(previous) - size + 1 :])
    if len(last) < size - 1:
        return []
    starts = range(len(previous) - size + 1)
    return [previous[at + size - 1] for at in starts if list(previous[at : at + size - 1]) == last]


def find_word_ends(previous: Sequence[int], words: Words) -> list[int]:
    """Last ids of the words whose other ids `previous` ends with."""
    return [
        word[-1]
        for word in words
        if len(word) == 1 or tuple(previous[1 - len(word) :]) == tuple(word[:-1])
    ]
