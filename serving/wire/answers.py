"""An answer as it travels: its text in pieces, and the rest of it as JSON with the last."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

from iblip.engines.language_model.types import (
    Answer,
    Completion,
    RankedCandidate,
    Timing,
    TokenLogprob,
)
from iblip.export.errors import ContractError
from iblip.export.system.json_text import parse_json

T = TypeVar("T")


def finish_from_answer(answer: Answer) -> str:
    """The `finish` tensor of an answer's last response: JSON, without the text itself."""
    content = asdict(answer)
    del content["text"]
    return json.dumps(content)


def answer_from_finish(text: str, finish: str) -> Answer:
    """The inverse of `finish_from_answer`, given the joined text.

    What a later server adds is ignored.

    Raises:
        ContractError: `finish` is not what `finish_from_answer` writes.
    """
    try:
        content = _completion({**parse_json(finish), "text": text})
        content["timing"] = _known(Timing, content["timing"])
        content["others"] = tuple(
            _known(Completion, _completion(other)) for other in content["others"]
        )
        content["ranking"] = tuple(
            _known(RankedCandidate, {**candidate, "token_ids": tuple(candidate["token_ids"])})
            for candidate in content["ranking"]
        )
        return _known(Answer, content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ContractError(f"the finish of the answer is damaged: {finish[:200]!r}") from error


def _completion(content: Mapping[str, Any]) -> dict[str, Any]:
    """A completion's fields, with JSON's lists turned back into tuples."""
    logprobs = content["logprobs"]
    if logprobs is not None:
        logprobs = tuple(
            _known(TokenLogprob, {**token, "top": tuple(map(tuple, token["top"]))})
            for token in logprobs
        )
    return {**content, "token_ids": tuple(content["token_ids"]), "logprobs": logprobs}


def _known(kind: type[T], content: Mapping[str, Any]) -> T:
    """An instance of a dataclass, of those entries that it has fields for."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in content.items() if name in names})
