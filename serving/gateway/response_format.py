"""`response_format`: an answer that is JSON, by a ranking or by a JSON schema.

A schema that lists every answer (a string with `enum`, or an object with one such property) becomes
the candidates of a ranking, so the answer is the most likely of them. Any other schema, and a list
where the request has options that a ranking does not take, holds the answer as it is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from iblip.engines.language_model.option_table import OPTIONS
from iblip.export.errors import OptionError
from iblip.export.messages import shown
from iblip.serving.gateway.errors import ParameterError

PLACE = "response_format"

NOTES = frozenset({"title", "description", "$schema", "$id", "default"})
"""Keywords of JSON Schema that allow and forbid nothing."""

EXPECTED = (
    "expected {'type': 'text'}, {'type': 'json_object'}, or {'type': 'json_schema', "
    "'json_schema': {'schema': …}}"
)


@dataclass(frozen=True, kw_only=True)
class Format:
    """What an answer looks like.

    Attributes:
        options: generation options that make it so.
        key: of the object that has a ranking's answer; empty where it is a string of JSON.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""

    @property
    def is_ranking(self) -> bool:
        """Whether the answer is one of a list."""
        return "candidates" in self.options

    def content(self, text: str) -> str:
        """The content of a message whose answer is `text`."""
        if not self.is_ranking:
            return text
        return json.dumps({self.key: text} if self.key else text, ensure_ascii=False)


def read_format(value: Any, *, may_rank: bool = True) -> Format:
    """The format that a request asks for; `None` is text.

    Args:
        value: as in the request.
        may_rank: whether the request's other options go with a ranking.

    Raises:
        ParameterError: it is none.
    """
    kind = value.get("type") if isinstance(value, dict) else value
    match kind:
        case None if value is None:
            return Format()
        case "text" if isinstance(value, dict):
            return Format()
        case "json_object" if isinstance(value, dict):
            return Format(options={"json_schema": {"type": "object"}})
        case "json_schema" if isinstance(value, dict):
            inner = value.get("json_schema")
            schema = inner.get("schema") if isinstance(inner, dict) else None
            if isinstance(schema, dict):
                ranked = _ranking(schema) if may_rank else None
                return ranked or _constrained(schema)
    raise ParameterError(f"response_format is {shown(value)}; {EXPECTED}", PLACE)


def _constrained(schema: Mapping[str, Any]) -> Format:
    try:
        OPTIONS["json_schema"].check(schema)
    except OptionError as error:
        raise ParameterError(f"the schema of response_format: {error}", PLACE) from error
    return Format(options={"json_schema": schema})


def _ranking(schema: Mapping[str, Any]) -> Format | None:
    """The ranking of a schema that lists every answer; `None` of another."""
    name, listed = _property(schema)
    known = {"type", "enum"} | NOTES
    if not isinstance(listed, dict) or listed.keys() - known:
        return None
    texts = listed.get("enum")
    if listed.get("type", "string") != "string" or not isinstance(texts, list) or not texts:
        return None
    try:
        OPTIONS["candidates"].check(tuple(texts))
    except OptionError:
        return None
    return Format(options={"candidates": tuple(texts)}, key=name)


def _property(schema: Mapping[str, Any]) -> tuple[str, Any]:
    """The one property of a schema of an object, and its schema; else the schema itself."""
    properties = schema.get("properties")
    known = {"type", "properties", "required", "additionalProperties"} | NOTES
    if (
        schema.get("type") != "object"
        or schema.get("additionalProperties") is not False
        or not isinstance(properties, dict)
        or len(properties) != 1
        or schema.get("required") != list(properties)
        or schema.keys() - known
    ):
        return "", schema
    ((name, listed),) = properties.items()
    return (name, listed) if name else ("", schema)
