"""Answers as OpenAI writes them: a chat completion, or its chunks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4

from iblip.engines.language_model.types import Answer, Completion, FinishReason, TokenLogprob
from iblip.serving.client.errors import CancelledError
from iblip.serving.client.faults import CANCELLED
from iblip.serving.gateway.response_format import Format
from iblip.serving.gateway.token_texts import TokenTexts

FINISH_REASONS: Mapping[FinishReason, str] = {
    "eos": "stop",
    "stop": "stop",
    "length": "length",
    "ranked": "stop",
}
"""Why an answer ended, in OpenAI's words."""

LEAST_LOGPROB = -9999.0
"""OpenAI's stand-in for minus infinity, which JSON has not."""


@dataclass(frozen=True, kw_only=True)
class Writer:
    """Writes one answer.

    Attributes:
        model: the name that the request gave.
        tokens: what tokens say.
        format: what the answer looks like.
        id: of the completion.
        created: seconds since 1970.
    """

    model: str
    tokens: TokenTexts
    format: Format
    id: str
    created: int

    @classmethod
    def new(cls, model: str, tokens: TokenTexts, form: Format) -> Writer:
        """A writer of a new answer."""
        return cls(
            model=model,
            tokens=tokens,
            format=form,
            id=f"chatcmpl-{uuid4().hex}",
            created=int(time.time()),
        )

    def completion(self, answer: Answer) -> dict[str, Any]:
        """The whole answer.

        Raises:
            CancelledError: the server cancelled it.
        """
        choices = [
            {
                "index": index,
                "message": {
                    "role": "assistant",
                    "content": self.format.content(one.text),
                    "refusal": None,
                },
                **self._end(one),
            }
            for index, one in enumerate(completions_of(answer))
        ]
        return {
            **self._head("chat.completion"),
            "choices": choices,
            "usage": usage(answer),
            "iblip": _own(answer),
        }

    def chunk(self, text: str, index: int = 0, *, first: bool = False) -> dict[str, Any]:
        """A piece of an answer."""
        role = {"role": "assistant"} if first else {}
        delta = {**role, "content": text}
        return self._chunk(
            {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        )

    def ends(self, answer: Answer, *, whole: bool) -> Iterator[dict[str, Any]]:
        """The chunks after the last piece of the first answer: the other answers, and every end.

        Args:
            answer: as the server finished it.
            whole: whether no piece of the first answer has been written.

        Raises:
            CancelledError: the server cancelled it.
        """
        for index, one in enumerate(completions_of(answer)):
            if index or whole:
                yield self.chunk(self.format.content(one.text), index, first=bool(index))
            yield self._chunk({"index": index, "delta": {}, **self._end(one)})

    def usage_chunk(self, answer: Answer) -> dict[str, Any]:
        """The last chunk, where the request asks for the numbers of tokens."""
        return {
            **self._head("chat.completion.chunk"),
            "choices": [],
            "usage": usage(answer),
            "iblip": _own(answer),
        }

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _end(self, one: Completion) -> dict[str, Any]:
        reason = FINISH_REASONS.get(one.finish_reason)
        if reason is None:
            raise CancelledError(CANCELLED)
        return {
            "finish_reason": reason,
            "logprobs": None if one.logprobs is None else self._logprobs(one.logprobs),
            "iblip": {
                "finish_reason": one.finish_reason,
                "score": one.score,
                "token_ids": list(one.token_ids),
            },
        }

    def _logprobs(self, tokens: tuple[TokenLogprob, ...]) -> dict[str, Any]:
        content = [
            {
                **self._token(token.token_id, token.logprob),
                "top_logprobs": [self._token(*one) for one in token.top],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        text, data = self.tokens.of(token_id)
        return {"token": text, "logprob": max(logprob, LEAST_LOGPROB), "bytes": data}


def completions_of(answer: Answer) -> tuple[Completion, ...]:
    """All answers to one request."""
    return (answer, *answer.others)


def usage(answer: Answer) -> dict[str, Any]:
    """The numbers of tokens; those of a prompt are positions, its images' included."""
    written = sum(one.completion_tokens for one in completions_of(answer))
    cached = answer.cached_prompt_tokens
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": written,
        "total_tokens": answer.prompt_tokens + written,
        **({} if cached is None else {"prompt_tokens_details": {"cached_tokens": cached}}),
    }


def _own(answer: Answer) -> dict[str, Any]:
    """What OpenAI has no place for."""
    return {
        "seed": answer.seed,
        "timing": asdict(answer.timing),
        "ranking": [asdict(one) for one in answer.ranking],
    }
