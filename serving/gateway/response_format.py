"""`response_format`: an answer that is one of a closed list, written as JSON.

A schema is taken where it lists every answer: a string with `enum`, or an object with one such
property. The list becomes the candidates of a ranking, so the answer is the most likely of them and
always valid. Any other schema is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from iblip.engines.language_model.option_table import OPTIONS
from iblip.export.errors import OptionError
from iblip.export.messages import shown
from iblip.serving.gateway.errors import ParameterError

PLACE = "response_format"

NOTES = frozenset({"title", "description", "$schema", "$id", "default"})
"""Keywords of JSON Schema that allow and forbid nothing."""

EXPECTED = (
    "expected {'type': 'text'}, or a json_schema that lists every answer: a string with enum, or "
    "an object with one required property of that kind and additionalProperties false"
)


@dataclass(frozen=True, kw_only=True)
class Format:
    """What an answer looks like.

    Attributes:
        candidates: every answer that there is; empty is text of any kind.
        property: of the object that has the answer; empty where the answer is a string of JSON.
    """

    candidates: tuple[str, ...] = ()
    property: str = ""

    def content(self, text: str) -> str:
        """The content of a message whose answer is `text`."""
        if not self.candidates:
            return text
        return json.dumps({self.property: text} if self.property else text, ensure_ascii=False)


def read_format(value: Any) -> Format:
    """The format that a request asks for; `None` is text.

    Raises:
        ParameterError: it is another one.
    """
    if value is None or value == {"type": "text"}:
        return Format()
    kind = value.get("type") if isinstance(value, dict) else value
    if kind != "json_schema":
        raise ParameterError(f"response_format is {shown(value)}; {EXPECTED}", PLACE)
    inner = value.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, dict) else None
    name, listed = _property(schema)
    return Format(candidates=_candidates(listed), property=name)


def _property(schema: Any) -> tuple[str, Any]:
    """The one property of a schema of an object, and its schema; else the schema itself."""
    if not isinstance(schema, dict) or schema.get("type") != "object":
        return "", schema
    properties = schema.get("properties")
    is_closed = schema.get("additionalProperties") is False
    known = {"type", "properties", "required", "additionalProperties"} | NOTES
    if not (isinstance(properties, dict) and len(properties) == 1 and is_closed) or (
        schema.get("required") != list(properties) or schema.keys() - known
    ):
        raise ParameterError(f"the schema is {shown(schema)}; {EXPECTED}", PLACE)
    ((name, listed),) = properties.items()
    if not name:
        raise ParameterError("the name of the property is empty", PLACE)
    return name, listed


def _candidates(schema: Any) -> tuple[str, ...]:
    listed = schema.get("enum") if isinstance(schema, dict) else None
    is_string = isinstance(schema, dict) and schema.get("type", "string") == "string"
    unknown = schema.keys() - {"type", "enum"} - NOTES if isinstance(schema, Mapping) else ()
    if not is_string or unknown or not isinstance(listed, list) or not listed:
        raise ParameterError(f"the schema is {shown(schema)}; {EXPECTED}", PLACE)
    try:
        OPTIONS["candidates"].check(tuple(listed))
    except OptionError as error:
        raise ParameterError(f"the enum of response_format: {error}", PLACE) from error
    return tuple(listed)
