"""Logits to the next token, as transformers' `generate` does it with one sequence.

The order is that of transformers' logits processors: repetition penalty, minimum length,
temperature, top-k, top-p, draw. All arithmetic is float32. Knows nothing of graphs or text.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from engines.language_model.types import GenerationOptions
from export.errors import EngineError

Logits = npt.NDArray[np.float32]
"""`[vocab]`"""

Ids = npt.NDArray[np.int64]


class Sampler:
    """Chooses the tokens of one answer.

    Args:
        options: how to choose.
        eos_token_ids: forbidden before `min_new_tokens`.
        context: ids that count as said before the first token, for the repetition penalty: the
            image placeholders and the prompt of a decoder-only model, the start token of an
            encoder-decoder. Ids outside the vocabulary are allowed and without effect.

    Attributes:
        seed: of the draw; `None` for greedy.
    """

    def __init__(
        self,
        options: GenerationOptions,
        *,
        eos_token_ids: Sequence[int],
        context: Sequence[int] = (),
    ) -> None:
        self._options = options
        self._eos = np.array(eos_token_ids, dtype=np.int64)
        self._said = set(context)
        self._count = 0
        self.seed = _seed(options)
        self._random = None if self.seed is None else np.random.default_rng(self.seed)

    def __call__(self, logits: npt.NDArray[np.generic]) -> int:
        """The next token, from the model's logits of any float dtype, `[vocab]`.

        Raises:
            EngineError: the logits are not numbers, as when float16 overflowed in the model.
        """
        # A copy: the processors below write in place.
        scores: Logits = logits.astype(np.float32)
        best = int(scores.argmax())
        if not np.isfinite(scores[best]):
            raise EngineError(
                f"the language model returned {scores[best]} among its logits. "
                "If it was built in fp16, build it with --precision language_model=fp32."
            )
        token = self._choose(scores)
        self._said.add(token)
        self._count += 1
        return token

    def _choose(self, scores: Logits) -> int:
        options = self._options
        if options.repetition_penalty != 1.0:
            penalise(scores, np.fromiter(self._said, np.int64), options.repetition_penalty)
        if self._count < options.min_new_tokens:
            scores[self._eos] = -np.inf
        if self._random is None:
            return int(scores.argmax())
        scores /= np.float32(options.temperature)
        ids = likeliest(scores, top_k=options.top_k, top_p=options.top_p)
        return draw(scores, ids, self._random)


def _seed(options: GenerationOptions) -> int | None:
    if options.temperature == 0:
        return None
    return secrets.randbits(63) if options.seed is None else options.seed


def penalise(scores: Logits, said: Ids, penalty: float) -> None:
    """Divides the positive scores of `said` by `penalty`, multiplies the negative, in place.

    Each id once, however often it was said. Ids outside the vocabulary are passed over.

    Source: Keskar et al. 2019, CTRL, section 4.1; transformers' RepetitionPenaltyLogitsProcessor.
    """
    ids = said[(said >= 0) & (said < scores.size)]
    found = scores[ids]
    scale = np.float32(penalty)
    scores[ids] = np.where(found < 0, found * scale, found / scale)


def likeliest(scores: Logits, *, top_k: int = 0, top_p: float = 1.0) -> Ids:
    """Ids that a draw may choose, in ascending order.

    Args:
        scores: `[vocab]`; -inf is never chosen.
        top_k: keep the k greatest, and any equal to the k-th; 0 keeps all.
        top_p: then keep the fewest of the likeliest whose probabilities (among those kept so far)
            add up to this; 1 keeps all.
    """
    if 0 < top_k < scores.size:
        least = np.partition(scores, scores.size - top_k)[scores.size - top_k]
        ids = np.flatnonzero(scores >= least)
    else:
        ids = np.arange(scores.size)
    if top_p < 1.0:
        order = ids[np.argsort(scores[ids], kind="stable")]  # the likeliest last
        less_likely = np.cumsum(_softmax(scores[order]), dtype=np.float64)
        keep = less_likely > 1 - top_p
        keep[-1] = True
        ids = np.sort(order[keep])
    return ids[scores[ids] > -np.inf]


def draw(scores: Logits, ids: Ids, random: np.random.Generator) -> int:
    """One of `ids`, with the probabilities that their scores give."""
    ladder = np.cumsum(_softmax(scores[ids]), dtype=np.float64)
    # Scaled by the sum, which rounding leaves a little off 1.
    step = np.searchsorted(ladder, random.random() * ladder[-1], side="right")
    return int(ids[min(int(step), ids.size - 1)])


def _softmax(scores: Logits) -> Logits:
    powers = np.exp(scores - scores.max())
    return np.asarray(powers / powers.sum(), dtype=np.float32)
