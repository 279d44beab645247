"""The answers to one request, from the tokens that vLLM chooses. Knows nothing of processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from iblip.engines.language_model.answering import (
    AnswerPlan,
    CompletionBuilder,
    answer_from_completions,
)
from iblip.engines.language_model.decoding.sampling import seed_for
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import Answer, TextDelta, Timing, TokenLogprob


class Sequences:
    """Greedy search, or one or more draws: a sequence each.

    Args:
        options: as asked.
        plan: what the answer may be.
        builder: makes an empty completion.

    Attributes:
        width: how many there are.
        seed: of the draws; `None` for greedy.
        begun: whether any has a token.
    """

    def __init__(
        self,
        options: GenerationOptions,
        plan: AnswerPlan,
        builder: Callable[[], CompletionBuilder],
    ) -> None:
        self.width, self.seed, self.begun = options.n, seed_for(options), False
        self._plan, self._top = plan, options.logprobs
        self._builders = [builder() for _ in range(options.n)]
        self._logprobs: list[list[TokenLogprob]] = [[] for _ in range(options.n)]
        self._deltas: list[TextDelta] = []

    @property
    def done(self) -> bool:
        """Whether every one is complete."""
        return all(builder.finish_reason is not None for builder in self._builders)

    def accept(self, index: int, message: Mapping[str, Any]) -> bool:
        """Takes more tokens of one sequence, as the worker reports them; whether it is complete.

        Tokens after its end, as after a stop string that vLLM knows nothing of, are left out.
        """
        builder, tokens, self.begun = self._builders[index], message["tokens"], True
        logprobs = message["logprobs"] or [None] * len(tokens)
        for token, found in zip(tokens, logprobs, strict=True):
            if builder.finish_reason is not None:
                break
            delta = builder.add(token)
            if found is not None:
                self._logprobs[index].append(self._token_logprob(token, found))
            if delta is not None and index == 0:
                self._deltas.append(delta)
        return builder.finish_reason is not None

    def take_deltas(self) -> list[TextDelta]:
        """What is new of the first sequence."""
        deltas, self._deltas = self._deltas, []
        return deltas

    def answer(self, timing: Timing) -> Answer:
        """The answer as far as it is."""
        completions = [
            builder.completion(None if self._top is None else logprobs)
            for builder, logprobs in zip(self._builders, self._logprobs, strict=True)
        ]
        return answer_from_completions(completions, self._plan, timing, self.seed)

    def _token_logprob(self, token: int, found: Sequence[Any]) -> TokenLogprob:
        logprob, ranked = found  # the chosen token is among the ranked, however unlikely
        top = tuple((int(i), float(x)) for i, x in ranked[: self._top])
        return TokenLogprob(token_id=token, logprob=float(logprob), top=top)
