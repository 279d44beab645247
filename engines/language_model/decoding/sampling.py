"""Logits to the next token, as transformers' `generate` does it with one sequence.

The order is that of transformers: logits processors, temperature, top-k, top-p, min-p, sampling.
All arithmetic is float32. This module knows nothing of graphs or text.
"""

from __future__ import annotations

import secrets

import numpy as np
import numpy.typing as npt

from iblip.engines.language_model.decoding.grammars import Constraint
from iblip.engines.language_model.decoding.logits_processors import LogitsProcessors
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import TokenLogprob
from iblip.export.errors import EngineError

Logits = npt.NDArray[np.float32]
"""`[vocab]`"""

Ids = npt.NDArray[np.int64]
"""Token ids, `[count]`"""


class Sampler:
    """Chooses the tokens of one answer.

    Args:
        options: how to choose.
        processors: the logits processors of the same options.
        seed: of the random generator, from `choose_seed`; `None` for greedy.
        index: tells this answer from others to the same request. The first samples what it would
            sample alone.
        constraint: forbids tokens that the answer's grammar does not allow; `None` is no grammar.

    Attributes:
        tokens: chosen so far.
        logprobs: of the chosen tokens, where the options ask for them.
    """

    def __init__(
        self,
        options: GenerationOptions,
        processors: LogitsProcessors,
        *,
        seed: int | None = None,
        index: int = 0,
        constraint: Constraint | None = None,
    ) -> None:
        self._options = options
        self._processors = processors
        self._constraint = constraint
        entropy = seed if not index or seed is None else [seed, index]
        self._random = None if seed is None else np.random.default_rng(entropy)
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []

    def __call__(self, logits: npt.NDArray[np.generic]) -> int:
        """The next token, from the model's logits of any float dtype, `[vocab]`.

        Raises:
            EngineError: the logits are not numbers, as when float16 overflowed in the model.
            OptionError: the options forbid every token.
        """
        scores = scores_from_logits(logits)
        top = self._options.logprobs
        raw = None if top is None else log_probabilities(scores)
        token = self._choose(scores)
        if self._constraint is not None:
            self._constraint.advance(token)
        self.tokens.append(token)
        if raw is not None and top is not None:
            self.logprobs.append(token_logprob(raw, token, top))
        return token

    def _choose(self, scores: Logits) -> int:
        options = self._options
        self._processors(scores, self.tokens)
        if self._constraint is not None:
            self._constraint.mask(scores)
        if self._random is None:
            return int(scores.argmax())
        scores /= np.float32(options.temperature)
        ids = filter_likely(scores, top_k=options.top_k, top_p=options.top_p, min_p=options.min_p)
        return sample(scores, ids, self._random)


def choose_seed(options: GenerationOptions) -> int | None:
    """The seed that these options name, or a fresh one if they name none; `None` for greedy."""
    if options.temperature == 0:
        return None
    return secrets.randbits(63) if options.seed is None else options.seed


def scores_from_logits(logits: npt.NDArray[np.generic]) -> Logits:
    """A float32 copy, to be changed in place.

    Raises:
        EngineError: the logits are not numbers, as when float16 overflowed in the model.
    """
    scores: Logits = logits.astype(np.float32)
    best = scores[int(scores.argmax())]
    if not np.isfinite(best):
        raise EngineError(
            f"the language model returned {best} among its logits. "
            "If it was built in fp16, build it with --precision language_model=fp32."
        )
    return scores


def log_probabilities(scores: Logits) -> Logits:
    """The logarithmic softmax of `scores`, `[vocab]`, as a new array."""
    shifted: Logits = scores - scores.max()
    shifted -= np.log(np.exp(shifted).sum(dtype=np.float32))
    return shifted


def token_logprob(logprobs: Logits, token: int, top: int) -> TokenLogprob:
    """The chosen token's log-probability, and those of the `top` most likely, most likely first."""
    count = min(top, logprobs.size)
    best = np.argpartition(-logprobs, count - 1)[:count] if count else np.array([], np.int64)
    best = best[np.lexsort((best, -logprobs[best]))]
    return TokenLogprob(
        token_id=token,
        logprob=float(logprobs[token]),
        top=tuple((int(i), float(logprobs[i])) for i in best),
    )


def filter_likely(scores: Logits, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Ids:
    """Ids that may be sampled, in ascending order.

    Args:
        scores: `[vocab]`; -inf is never chosen.
        top_k: keep the k greatest, and any equal to the k-th; 0 keeps all.
        top_p: then keep the fewest of the most likely whose probabilities (among those kept so far)
            add up to this; 1 keeps all.
        min_p: then keep those with at least this share of the highest probability; 0 keeps all.
    """
    if 0 < top_k < scores.size:
        kth_greatest = np.partition(scores, scores.size - top_k)[scores.size - top_k]
        ids = np.flatnonzero(scores >= kth_greatest)
    else:
        ids = np.arange(scores.size)
    if top_p < 1.0:
        order = ids[np.argsort(scores[ids], kind="stable")]  # [len(ids)], the most likely last
        less_likely = np.cumsum(_softmax(scores[order]), dtype=np.float64)
        keep = less_likely > 1 - top_p
        keep[-1] = True
        ids = np.sort(order[keep])
    if min_p > 0:
        shares = _softmax(scores[ids])
        ids = ids[shares >= np.float32(min_p) * shares.max()]
    return ids[scores[ids] > -np.inf]


def sample(scores: Logits, ids: Ids, random: np.random.Generator) -> int:
    """Samples one of `ids`, with the probabilities that their scores give."""
    cumulative = np.cumsum(_softmax(scores[ids]), dtype=np.float64)  # [len(ids)]
    # Scaled by the sum, which rounding leaves a little off 1.
    index = np.searchsorted(cumulative, random.random() * cumulative[-1], side="right")
    return int(ids[min(int(index), ids.size - 1)])


def _softmax(scores: Logits) -> Logits:
    powers = np.exp(scores - scores.max())
    return np.asarray(powers / powers.sum(), dtype=np.float32)
