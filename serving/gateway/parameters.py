"""The parameters of a chat completion: OpenAI's own, and every generation option.

A parameter is a row of `PARAMETERS`. The options are not written again here: they come from
`engines.language_model.option_table`. What is not in the table is refused by name, and so is a
parameter of OpenAI's that asks for what these models do not do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from iblip.engines.language_model.option_kinds import Choice, Flag, Integer, Kind, Number
from iblip.engines.language_model.option_table import MOST_LOGPROBS, OPTIONS
from iblip.engines.language_model.options import values_from_json
from iblip.engines.language_model.presets import DEFAULT_CALLS
from iblip.engines.language_model.types import Priority
from iblip.export.errors import OptionError
from iblip.export.images import READINGS, Reading
from iblip.export.messages import did_you_mean, shown
from iblip.serving.client.patience import LONGEST_TIMEOUT_S
from iblip.serving.gateway.errors import ParameterError
from iblip.serving.gateway.response_format import Format, read_format
from iblip.serving.wire.parameters import PRIORITIES


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a request.

    Attributes:
        help: what it does, in Markdown.
        kind: the values that it takes; `None` where they are read elsewhere.
        option: the generation option that it sets; empty if it is none.
        schema: of its value, in OpenAPI, where `kind` does not say it.
    """

    help: str
    kind: Kind | None = None
    option: str = ""
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Nothing(Kind):
    """The values of a parameter of OpenAI's that ask for nothing; all others are refused.

    Attributes:
        values: besides null.
        instead: what to do about another value.
    """

    values: tuple[Any, ...] = ()
    instead: str = ""

    @property
    def expected(self) -> str:
        """See `Kind`."""
        allowed = " or ".join(["null", *map(repr, self.values)])
        return f"{allowed}: the model has no such thing. {self.instead}".strip()

    def accepts(self, value: object) -> bool:
        """See `Kind`. False is not 0."""
        return any(type(value) is type(one) and value == one for one in self.values) or (
            type(value) is float and value in self.values
        )


@dataclass(frozen=True)
class Text(Kind):
    """A string."""

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return "a string"

    def accepts(self, value: object) -> bool:
        """See `Kind`."""
        return isinstance(value, str)


@dataclass(frozen=True)
class Notes(Kind):
    """An object of strings."""

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return "an object of strings"

    def accepts(self, value: object) -> bool:
        """See `Kind`."""
        return isinstance(value, dict) and all(isinstance(one, str) for one in value.values())


_TOKENS = OPTIONS["max_new_tokens"].kind
_UNUSED = "Accepted, and has no effect."
_NO_PENALTY = "Use repetition_penalty or no_repeat_ngram_size."
_OBJECT: Mapping[str, Any] = {"type": "object"}

OWN: Mapping[str, Parameter] = {
    "model": Parameter(help="Name of a served model; `/v1/models` lists them.", kind=Text()),
    "messages": Parameter(
        help="The conversation.", schema={"$ref": "#/components/schemas/Messages"}
    ),
    "stream": Parameter(help="Send the answer as it is written.", kind=Flag()),
    "stream_options": Parameter(
        help="`include_usage`: whether a last chunk has the numbers of tokens.",
        schema={
            "type": "object",
            "properties": {"include_usage": {"type": "boolean"}},
            "additionalProperties": False,
        },
    ),
    "max_tokens": Parameter(
        help="Most tokens of the answer.", kind=_TOKENS, option="max_new_tokens"
    ),
    "max_completion_tokens": Parameter(
        help="Most tokens of the answer.", kind=_TOKENS, option="max_new_tokens"
    ),
    "logprobs": Parameter(help="Report the log-probability of each token.", kind=Flag()),
    "top_logprobs": Parameter(
        help="Report those of this many most likely tokens, too; needs `logprobs`.",
        kind=Integer(0, MOST_LOGPROBS),
    ),
    "response_format": Parameter(
        help="`text`; or JSON: `json_object`, or what a `json_schema` allows.",
        schema={"$ref": "#/components/schemas/ResponseFormat"},
    ),
    "compat": Parameter(
        help="Answer like this original; options of the request override its own.",
        kind=Choice(tuple(DEFAULT_CALLS)),
    ),
    "preprocessing": Parameter(
        help="Read images as they are meant to be seen, or as LAVIS does.",
        kind=Choice(tuple(READINGS)),
    ),
    "priority_class": Parameter(
        help="Where requests wait, interactive ones go first.", kind=Choice(tuple(PRIORITIES))
    ),
    "timeout": Parameter(
        help="Seconds after which the request is given up.",
        kind=Number(0, LONGEST_TIMEOUT_S, above=True),
    ),
    "user": Parameter(help=_UNUSED, kind=Text()),
    "safety_identifier": Parameter(help=_UNUSED, kind=Text()),
    "prompt_cache_key": Parameter(help=_UNUSED, kind=Text()),
    "prompt_cache_retention": Parameter(help=_UNUSED, kind=Text()),
    "metadata": Parameter(help=_UNUSED, kind=Notes()),
    "service_tier": Parameter(help=_UNUSED, kind=Nothing(("auto", "default"))),
    "store": Parameter(help="Nothing is stored.", kind=Nothing((False,))),
    "presence_penalty": Parameter(help=_NO_PENALTY, kind=Nothing((0,), _NO_PENALTY)),
    "frequency_penalty": Parameter(help=_NO_PENALTY, kind=Nothing((0,), _NO_PENALTY)),
    "modalities": Parameter(help="Answers are text.", kind=Nothing((["text"],))),
    "tools": Parameter(help="There are none.", kind=Nothing(([],))),
    "tool_choice": Parameter(help="There are none.", kind=Nothing(("none", "auto"))),
    "parallel_tool_calls": Parameter(help="There are none.", kind=Nothing((True, False))),
    "functions": Parameter(help="There are none.", kind=Nothing(([],))),
    "function_call": Parameter(help="There are none.", kind=Nothing(("none", "auto"))),
    "reasoning_effort": Parameter(help="The models do not reason.", kind=Nothing(("none",))),
    "verbosity": Parameter(help="There is one.", kind=Nothing(("medium",))),
    **dict.fromkeys(
        ("audio", "moderation", "prediction", "prompt_cache_options", "web_search_options"),
        Parameter(help="There is none.", kind=Nothing()),
    ),
}
"""What is not a generation option, or has another name or meaning there."""

PARAMETERS: Mapping[str, Parameter] = {
    **OWN,
    **{
        name: Parameter(help=f"{one.help} {one.note}".strip(), kind=one.kind, option=name)
        for name, one in OPTIONS.items()
        if name not in OWN
    },
}
"""Every parameter by name."""

RANKING = frozenset(name for name, option in OPTIONS.items() if option.ranks)
"""Options that go with a ranking."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a request asks for, apart from its messages.

    Attributes:
        model: name of one.
        options: generation options by name, those that were given.
        stream: whether the answer is sent as it is written.
        include_usage: whether a last chunk has the numbers of tokens.
        format: what the answer looks like.
        compat: the original that it is to be like; `None` is none.
        preprocessing: how images are read.
        priority: of the request, where others wait.
        timeout_s: seconds until it is given up; `None` is the gateway's own.
    """

    model: str
    options: Mapping[str, Any]
    stream: bool = False
    include_usage: bool = False
    format: Format
    compat: str | None = None
    preprocessing: Reading = "viewed"
    priority: Priority = "interactive"
    timeout_s: float | None = None


def read_parameters(body: Mapping[str, Any]) -> Asked:
    """What a request asks for.

    Raises:
        ParameterError: a parameter is unknown, is not supported, or is out of range.
    """
    given = {name: value for name, value in body.items() if value is not None}
    for name in body:
        if name not in PARAMETERS:
            hint = did_you_mean(name, PARAMETERS)
            raise ParameterError(f"there is no parameter {shown(name)}.{hint}", name[:200])
    for name in ("model", "messages"):
        if name not in given:
            raise ParameterError(f"{name} is missing", name)
    for name, value in given.items():
        _check(name, value)
    options = _options(given)
    form = read_format(given.get("response_format"), may_rank=not options.keys() - RANKING)
    for name in ("candidates", "json_schema"):
        if form.options and name in options:
            raise ParameterError(f"{name} and response_format both say what is answered", name)
    options |= form.options
    return Asked(
        model=given["model"],
        options=options,
        stream=given.get("stream", False),
        include_usage=_include_usage(given),
        format=form,
        compat=given.get("compat"),
        preprocessing=given.get("preprocessing", "viewed"),
        priority=given.get("priority_class", "interactive"),
        timeout_s=given.get("timeout"),
    )


def _check(name: str, value: Any) -> None:
    parameter = PARAMETERS[name]
    if parameter.kind is None:
        return
    try:
        parameter.kind.check(name, _value(parameter, value))
    except OptionError as error:
        raise ParameterError(str(error), name) from error


def _value(parameter: Parameter, value: Any) -> Any:
    """A value of JSON as its kind takes it; `stop` may be a single string."""
    if not parameter.option:
        return value
    if parameter.option == "stop" and isinstance(value, str):
        return (value,)
    return values_from_json({parameter.option: value})[parameter.option]


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The generation options, by their own names."""
    options: dict[str, Any] = {}
    names: dict[str, str] = {}
    for name, value in given.items():
        option = PARAMETERS[name].option
        if option and option in options and options[option] != value:
            raise ParameterError(f"{names[option]} and {name} say the same: leave one out", name)
        if option:
            options[option], names[option] = _value(PARAMETERS[name], value), name
    if given.get("logprobs"):
        options["logprobs"] = given.get("top_logprobs", 0)
    elif "top_logprobs" in given:
        raise ParameterError("top_logprobs needs logprobs to be true", "top_logprobs")
    return options


def _include_usage(given: Mapping[str, Any]) -> bool:
    options = given.get("stream_options")
    if options is None:
        return False
    if not given.get("stream"):
        raise ParameterError("stream_options needs stream to be true", "stream_options")
    if not isinstance(options, dict) or any(
        name != "include_usage" and value is not None for name, value in options.items()
    ):
        raise ParameterError(
            f"stream_options is {shown(options)}; expected an object with include_usage alone",
            "stream_options",
        )
    include = options.get("include_usage")
    if include is not None and not isinstance(include, bool):
        raise ParameterError(
            f"include_usage is {shown(include)}; expected true or false",
            "stream_options.include_usage",
        )
    return bool(include)


def parameter_of(error: OptionError, given: Mapping[str, Any]) -> str | None:
    """The parameter that an error about options begins with, under the name that was given.

    Args:
        error: of options together, or of the server.
        given: the parameters of the request.
    """
    word = str(error).partition(" ")[0].rstrip(",")
    if word not in OPTIONS:
        return None
    names = [name for name in given if PARAMETERS[name].option == word]
    if not names and word in ("candidates", "json_schema") and "response_format" in given:
        return "response_format"
    return names[0] if names else word
