"""The gateway as an OpenAPI document, made from the table of parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from iblip.engines.language_model.option_kinds import (
    Biases,
    Choice,
    Flag,
    Integer,
    Kind,
    Number,
    Schema,
    Texts,
    TokenIds,
)
from iblip.engines.language_model.option_table import OPTIONS
from iblip.serving.gateway.errors import REFUSALS
from iblip.serving.gateway.parameters import PARAMETERS, Notes, Nothing, Parameter, Text

VERSION = "1"
"""Of the gateway's interface."""


def _number(kind: Number) -> dict[str, Any]:
    least = "exclusiveMinimum" if kind.above else "minimum"
    return {"type": "number", least: kind.least, "maximum": kind.most}


def _integer(kind: Integer) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer", "minimum": kind.least}
    return schema if kind.most is None else {**schema, "maximum": kind.most}


def _texts(kind: Texts) -> dict[str, Any]:
    text = {"type": "string", "minLength": 1}
    return {"type": "array", "items": text, "maxItems": kind.most}


def _biases(kind: Biases) -> dict[str, Any]:
    return {
        "type": "object",
        "propertyNames": {"pattern": "^[0-9]{1,18}$"},
        "additionalProperties": _number(kind.bias),
    }


SCHEMAS: Mapping[type[Kind], Callable[[Any], dict[str, Any]]] = {
    Integer: _integer,
    Number: _number,
    Flag: lambda kind: {"type": "boolean"},
    Choice: lambda kind: {"enum": list(kind.values)},
    Texts: _texts,
    TokenIds: lambda kind: {
        "type": "array",
        "items": {"type": "integer", "minimum": 0},
        "maxItems": kind.most,
    },
    Biases: _biases,
    Schema: lambda kind: {"type": "object"},
    Text: lambda kind: {"type": "string"},
    Notes: lambda kind: {"type": "object", "additionalProperties": {"type": "string"}},
    Nothing: lambda kind: {"enum": [*kind.values, None]},
}
"""The schema of each kind of value."""


def schema_of(parameter: Parameter) -> dict[str, Any]:
    """The schema of a parameter's value; null stands for leaving it out."""
    kind = parameter.kind
    schema = dict(parameter.schema or {}) if kind is None else SCHEMAS[type(kind)](kind)
    if parameter.option == "stop":
        schema = {"anyOf": [{"type": "string", "minLength": 1}, schema]}
    if not isinstance(kind, Nothing):
        schema = {"anyOf": [schema, {"type": "null"}]}
    default = OPTIONS[parameter.option].default_text if parameter.option else ""
    words = f"{parameter.help} Default: {default}." if default else parameter.help
    return {**schema, "description": words}


def openapi_document(models: Iterable[str], *, needs_key: bool) -> dict[str, Any]:
    """The document.

    Args:
        models: names of those that are served.
        needs_key: whether requests need one.
    """
    properties = {name: schema_of(parameter) for name, parameter in PARAMETERS.items()}
    for name in ("model", "messages"):
        properties[name] = {**properties[name]["anyOf"][0], "description": PARAMETERS[name].help}
    properties["model"]["enum"] = list(models)
    request = {
        "type": "object",
        "required": ["model", "messages"],
        "properties": properties,
        "additionalProperties": False,
    }
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "iblip gateway", "version": VERSION},
        "paths": _paths(),
        "components": {
            "schemas": {
                "ChatCompletionRequest": request,
                "Messages": _MESSAGES,
                "ResponseFormat": _FORMAT,
                "ChatCompletion": _COMPLETION,
                "Model": _MODEL,
                "Error": _ERROR,
            }
        },
    }
    if needs_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, methods in document["paths"].items():
            if path.startswith("/v1/"):
                for method in methods.values():
                    method["security"] = [{"key": []}]
    return document


def _json(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": dict(properties)}


def _refusals(*statuses: int) -> dict[str, Any]:
    return {
        str(status): {"description": "An error.", "content": _json(_reference("Error"))}
        for status in statuses
    }


def _paths() -> dict[str, Any]:
    every = sorted({refusal.status for refusal in REFUSALS.values()})
    anything = {"description": "The state of each server.", "content": _json({"type": "object"})}
    models = _object(
        {"object": {"const": "list"}, "data": {"type": "array", "items": _reference("Model")}}
    )
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    completion = {
        **_json(_reference("ChatCompletion")),
        "text/event-stream": {"schema": {"type": "string"}},
    }
    return {
        "/v1/chat/completions": {
            "post": {
                "summary": "Ask about images.",
                "requestBody": {
                    "required": True,
                    "content": _json(_reference("ChatCompletionRequest")),
                },
                "responses": {
                    "200": {"description": "The answer.", "content": completion},
                    **_refusals(*every),
                },
            }
        },
        "/v1/models": {
            "get": {
                "summary": "List the models.",
                "responses": {
                    "200": {"description": "All models.", "content": _json(models)},
                    **_refusals(401),
                },
            }
        },
        "/v1/models/{model}": {
            "get": {
                "summary": "Describe a model.",
                "parameters": [name],
                "responses": {
                    "200": {"description": "The model.", "content": _json(_reference("Model"))},
                    **_refusals(401, 404),
                },
            }
        },
        "/health": {
            "get": {
                "summary": "Whether every server would answer.",
                "responses": {"200": anything, "503": anything},
            }
        },
        "/metrics": {
            "get": {
                "summary": "Counts, as Prometheus reads them.",
                "responses": {
                    "200": {
                        "description": "Counts.",
                        "content": {"text/plain": {"schema": {"type": "string"}}},
                    }
                },
            }
        },
    }


_PART = {
    "oneOf": [
        {
            **_object({"type": {"const": "text"}, "text": {"type": "string"}}),
            "additionalProperties": True,
        },
        _object(
            {
                "type": {"const": "image_url"},
                "image_url": {
                    "type": "object",
                    "required": ["url"],
                    "properties": {
                        "url": {
                            "type": "string",
                            "description": "data:image/…;base64,…, or https: of an allowed host.",
                        },
                        "detail": {"enum": ["auto", "low", "high", None]},
                    },
                },
            }
        ),
    ]
}

_MESSAGES = {
    "type": "array",
    "minItems": 1,
    "description": "The last is the user's. Only MiniGPT-4 takes earlier turns.",
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {
            "role": {"enum": ["user", "assistant"]},
            "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}]},
            "name": {"type": "string"},
        },
        "additionalProperties": False,
    },
}

_FORMAT = {
    "oneOf": [
        _object({"type": {"enum": ["text", "json_object"]}}),
        _object(
            {
                "type": {"const": "json_schema"},
                "json_schema": {
                    "type": "object",
                    "required": ["schema"],
                    "properties": {
                        "name": {"type": "string"},
                        "strict": {"type": ["boolean", "null"]},
                        "schema": {
                            "type": "object",
                            "description": "A string with enum, or an object of one such property, "
                            "is ranked; the tokens of an answer to any other are chosen by it.",
                        },
                    },
                },
            }
        ),
    ]
}

_USAGE = _object(
    {name: {"type": "integer"} for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
)
_USAGE["properties"]["prompt_tokens_details"] = {
    **_object({"cached_tokens": {"type": "integer"}}),
    "description": "Of the prefix cache; absent where the engine does not say it.",
}

_COMPLETION = _object(
    {
        "id": {"type": "string"},
        "object": {"const": "chat.completion"},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "choices": {
            "type": "array",
            "items": _object(
                {
                    "index": {"type": "integer"},
                    "message": _object(
                        {"role": {"const": "assistant"}, "content": {"type": "string"}}
                    ),
                    "finish_reason": {"enum": ["stop", "length"]},
                }
            ),
        },
        "usage": _USAGE,
    }
)

_MODEL = _object(
    {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
    }
)

_ERROR = _object(
    {
        "error": _object(
            {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            }
        )
    }
)
