"""The answers to one request, built from vLLM's tokens. Knows nothing of processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from iblip.engines.language_model.answering import (
    AnswerLimits,
    CompletionBuilder,
    answer_from_completions,
)
from iblip.engines.language_model.decoding.sampling import choose_seed
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import Answer, TextDelta, Timing, TokenLogprob


class Sequences:
    """Greedy search, or one or more sampled answers: a sequence each.

    Args:
        options: how to generate.
        limits: of the answer.
        builder: makes an empty completion.

    Attributes:
        width: how many sequences there are.
        seed: of the random generator; `None` for greedy.
        begun: whether any sequence has a token.
    """

    def __init__(
        self,
        options: GenerationOptions,
        limits: AnswerLimits,
        builder: Callable[[], CompletionBuilder],
    ) -> None:
        self.width, self.seed, self.begun = options.n, choose_seed(options), False
        self._limits, self._top = limits, options.logprobs
        self._builders = [builder() for _ in range(options.n)]
        self._logprobs: list[list[TokenLogprob]] = [[] for _ in range(options.n)]
        self._deltas: list[TextDelta] = []

    @property
    def done(self) -> bool:
        """Whether every sequence is complete."""
        return all(builder.finish_reason is not None for builder in self._builders)

    def accept(self, index: int, message: Mapping[str, Any]) -> bool:
        """Takes more tokens of one sequence, as the worker reports them; `True` at its end.

        Tokens after its end are left out, as after a stop string, which vLLM knows nothing of.
        """
        builder, tokens, self.begun = self._builders[index], message["tokens"], True
        logprobs = message["logprobs"] or [None] * len(tokens)
        for token, report in zip(tokens, logprobs, strict=True):
            if builder.finish_reason is not None:
                break
            delta = builder.add(token)
            if report is not None:
                self._logprobs[index].append(self._read_logprob(token, report))
            if delta is not None and index == 0:
                self._deltas.append(delta)
        return builder.finish_reason is not None

    def take_deltas(self) -> list[TextDelta]:
        """The new text of the first sequence."""
        deltas, self._deltas = self._deltas, []
        return deltas

    def answer(self, timing: Timing) -> Answer:
        """The answer so far."""
        completions = [
            builder.completion(None if self._top is None else logprobs)
            for builder, logprobs in zip(self._builders, self._logprobs, strict=True)
        ]
        return answer_from_completions(completions, self._limits, timing, self.seed)

    def _read_logprob(self, token: int, report: Sequence[Any]) -> TokenLogprob:
        logprob, ranked = report  # the chosen token is among the ranked, however unlikely
        top = tuple((int(i), float(x)) for i, x in ranked[: self._top])
        return TokenLogprob(token_id=token, logprob=float(logprob), top=top)
