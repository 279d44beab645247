"""What travels between a client and the Triton models, written once for both ends.

Names of models, tensors and parameters; the finish of an answer as JSON; errors as text that
keeps their kind; what a client must know of a server. `docs/wire.md` is this module for readers.
Knows the manifest and the language model's options and answers; nothing of gRPC, of Triton's
messages or of numpy.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self, TypeVar, get_args

from iblip.engines.language_model.option_table import OPTIONS, Option
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import (
    Answer,
    Completion,
    Priority,
    RankedCandidate,
    Timing,
    TokenLogprob,
)
from iblip.export.artifact.manifest import Manifest, Preprocessing, how_to_raise
from iblip.export.artifact.typed import from_fields
from iblip.export.errors import (
    ContractError,
    DeadlineError,
    EngineError,
    IblipError,
    InputError,
    OptionError,
    QueueFullError,
    UsageError,
)
from iblip.export.messages import shown
from iblip.export.system.json_text import parse_json

logger = logging.getLogger(__name__)

VERSION = 4
"""Of this wire format; a client refuses a server that speaks another."""

MODEL = "instructblip"
"""What callers ask."""

UNARY = "instructblip_unary"
"""The same in one response."""

CHAIN = "visual_prompt"
"""The ensemble of vision encoder and Q-Former."""

PIXELS = "pixels"
PROMPT = "prompt"
VISUAL_PROMPT = "visual_prompt"
TEXT = "text"
FINISH = "finish"

CALLS = 288
"""Requests that a Python model may have under way at another. More would wait in a queue of
Triton's that knows neither deadlines nor callers that have gone, so `UNARY` refuses them."""

MAX_TIMEOUT_US = 10**15
"""The longest `timeout` of a request, about 30 years."""

TOKEN = "iblip-token"
"""The HTTP header that has the token, where the server wants one."""

GRPC_TOKEN = f"triton-grpc-protocol-{TOKEN}"
"""The same as gRPC metadata: Triton puts this before the name of a header."""

STREAM = "stream"
"""A request parameter: false asks for the whole answer in one response."""

CANCEL_KEY = "cancel_key"
"""A request parameter: a secret of the caller's own, by which `CANCEL` ends the request."""

PRIORITY = "priority_class"
"""A request parameter: one of `PRIORITIES`. Triton itself takes `priority`, and wants a number."""

PRIORITIES: tuple[Priority, ...] = get_args(Priority)

CANCEL = "cancel"
"""The one parameter of a request that cancels others: their `CANCEL_KEY`. For callers that cannot
close a stream: Triton 2.51 does not tell a model that a Python model, its caller, has gone."""

LONGEST_KEY = 256
"""Characters of a `CANCEL_KEY`, at most."""

CALL_KEY = "call_key"
"""A request parameter: shows that `UNARY` is the caller, whose `PACKED` parameters are believed."""

PACKED = "options_json"
"""A request parameter that holds all the others, as one JSON object in a string. The one-answer
model sends it: a Python model of Triton 2.51 cannot pass a number with a fraction on."""

ERROR_KINDS: Mapping[str, type[IblipError]] = {
    "OptionError": OptionError,
    "InputError": InputError,
    "ContractError": ContractError,
    "DeadlineError": DeadlineError,
    "QueueFullError": QueueFullError,
    "EngineError": EngineError,
}
"""The kinds of error that a server distinguishes, by the name that opens their text. A subclass
stands before its base class."""

STATUSES: Mapping[type[Exception], str] = {
    UsageError: "INVALID_ARG",
    ContractError: "INVALID_ARG",
    QueueFullError: "UNAVAILABLE",
    # Triton has no code for a missed deadline, and `CANCELLED` is what a caller asked for.
}
"""Triton's error code for each kind; `INTERNAL` for the others."""

TRITON_PHRASES: Mapping[str, type[IblipError]] = {
    "timeout expired": DeadlineError,
    "maximum queue size": QueueFullError,
}
"""Errors of Triton's own queues, by a phrase in their text: its codes do not distinguish them."""

_PATH = re.compile(r"(?<![\w.:/-])/[^\s'\"`,;()\[\]<>]+|\biblip-triton-\w+")
"""A path from the root, or a name in shared memory."""

_STACK = re.compile(r"\n[ \t]*(?:Stack ?trace|Traceback|At:|File \"|#\d+ ).*", re.DOTALL | re.I)
"""Where a stack begins, as ONNX Runtime, Python, pybind11 and C++ write it, and all behind it."""

_TAGGED = re.compile(rf"\b({'|'.join(ERROR_KINDS)}): (.*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request to this server may be.

    Attributes:
        max_instruction: most tokens of the prompt that the Q-Former reads; `None` if it reads none.
        images: most images in one request.
        max_length: positions shared by visual prompts, prompt and answer.
        num_query_tokens: how many of those each image takes.
        default_max_new_tokens: most tokens of an answer whose request names no limit.
        slots: most answers (`n`) or beams of one request.
        queue: most requests that may wait.
        max_prompt_bytes: most bytes of a prompt, in UTF-8.
        max_option_bytes: most bytes of a request's parameters, as JSON.
        max_logprobs: most log-probabilities of one request, in all its answers.
    """

    max_instruction: int | None
    images: int
    max_length: int
    num_query_tokens: int
    default_max_new_tokens: int
    slots: int
    queue: int
    max_prompt_bytes: int
    max_option_bytes: int
    max_logprobs: int


@dataclass(frozen=True, kw_only=True)
class ServedBuild:
    """Which build a server serves.

    Attributes:
        name: of the checkpoint.
        family: of the model, such as `instructblip`.
        language_model: its architecture: `llama`, `opt` or `t5`.
        precision: by component.
        created: UTC, ISO 8601.
    """

    name: str
    family: str
    language_model: str
    precision: Mapping[str, str]
    created: str


T = TypeVar("T", Preprocessing, Limits, ServedBuild)


@dataclass(frozen=True, kw_only=True)
class ServerContract:
    """What a client must know of a server: read from the model's own config.

    Attributes:
        preprocessing: what to do to an image.
        limits: what a request may be.
        build: which build is served.
    """

    preprocessing: Preprocessing
    limits: Limits
    build: ServedBuild

    @classmethod
    def from_manifest(cls, manifest: Manifest) -> Self:
        """The contract of a build."""
        text, model = manifest.text, manifest.language_model
        reads_instruction = text.qformer_tokenizer is not None
        limits = Limits(
            max_instruction=manifest.max_instruction if reads_instruction else None,
            images=manifest.limits.images,
            max_length=manifest.limits.max_length,
            num_query_tokens=model.num_query_tokens,
            default_max_new_tokens=model.default_max_new_tokens,
            slots=manifest.limits.slots,
            queue=manifest.limits.queue,
            max_prompt_bytes=manifest.limits.max_prompt_bytes,
            max_option_bytes=manifest.limits.max_option_bytes,
            max_logprobs=manifest.limits.max_logprobs,
        )
        build = ServedBuild(
            name=manifest.name,
            family=manifest.family,
            language_model=model.architecture,
            precision=dict(manifest.precision),
            created=manifest.created,
        )
        return cls(preprocessing=manifest.preprocessing, limits=limits, build=build)

    def to_parameters(self) -> dict[str, str]:
        """As parameters of the model's config: JSON strings by name."""
        return {
            "wire_version": str(VERSION),
            "preprocessing": json.dumps(asdict(self.preprocessing)),
            "limits": json.dumps(asdict(self.limits)),
            "build": json.dumps(asdict(self.build)),
        }

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> Self:
        """The inverse of `to_parameters`.

        Raises:
            ContractError: the wire version differs, or a parameter is missing or damaged.
        """
        version = parameters.get("wire_version")
        if version != str(VERSION):
            raise ContractError(
                f"the server's wire version is {version or 'none'}; this client speaks {VERSION}. "
                "Install the client that came with the build."
            )
        return cls(
            preprocessing=_read_parameter(Preprocessing, parameters, "preprocessing"),
            limits=_read_parameter(Limits, parameters, "limits"),
            build=_read_parameter(ServedBuild, parameters, "build"),
        )


def _read_parameter(kind: type[T], parameters: Mapping[str, str], name: str) -> T:
    text = parameters.get(name)
    try:
        return from_fields(kind, parse_json(text or "null"))
    except ValueError as error:
        raise ContractError(
            f"the parameter {name} of the server's model config is "
            f"{'missing' if text is None else text[:200]}; expected a JSON object of "
            f"{', '.join(field.name for field in fields(kind))}. Serve a build made by this "
            "version, or install the client that came with the build."
        ) from error


def finish_from_answer(answer: Answer) -> str:
    """The `finish` tensor of an answer's last response: JSON, without the text itself."""
    content = asdict(answer)
    del content["text"]
    return json.dumps(content)


def answer_from_finish(text: str, finish: str) -> Answer:
    """The inverse of `finish_from_answer`, given the joined text.

    Raises:
        ContractError: `finish` is not what `finish_from_answer` writes.
    """
    try:
        content = parse_json(finish)
        content["timing"] = Timing(**content["timing"])
        content["others"] = tuple(Completion(**_completion(other)) for other in content["others"])
        content["ranking"] = tuple(
            RankedCandidate(**{**candidate, "token_ids": tuple(candidate["token_ids"])})
            for candidate in content["ranking"]
        )
        return Answer(text=text, **_completion(content))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ContractError(f"the finish of the answer is damaged: {finish[:200]!r}") from error


def _completion(content: Mapping[str, Any]) -> dict[str, Any]:
    """A completion's fields, with JSON's lists turned back into tuples."""
    logprobs = content["logprobs"]
    if logprobs is not None:
        logprobs = tuple(
            TokenLogprob(**{**token, "top": tuple(map(tuple, token["top"]))}) for token in logprobs
        )
    return {**content, "token_ids": tuple(content["token_ids"]), "logprobs": logprobs}


def parameters_from_options(options: GenerationOptions) -> dict[str, int | float | str]:
    """Request parameters: what differs from the default, lists and objects as JSON in a string."""
    return {
        name: json.dumps(value) if OPTIONS[name].kind.json else value
        for name, value in options.to_mapping().items()
    }


def options_from_parameters(parameters: Mapping[str, Any]) -> GenerationOptions:
    """The inverse of `parameters_from_options`; what are none is passed over.

    Raises:
        OptionError: naming the option, what was given and its range.
    """
    given = {name: value for name, value in parameters.items() if not _is_no_option(name)}
    for name in OPTIONS.keys() & given.keys():
        given[name] = _from_parameter(OPTIONS[name], given[name])
    return GenerationOptions.from_mapping(given)


def stream_from_parameters(parameters: Mapping[str, Any]) -> bool:
    """Whether the text is wanted as it is written; it is unless the request says otherwise.

    Raises:
        OptionError: `stream` is neither true nor false.
    """
    stream = parameters.get(STREAM, True)
    if not isinstance(stream, bool):
        raise OptionError(f"{STREAM} is {shown(stream)}; expected true or false")
    return stream


def priority_from_parameters(parameters: Mapping[str, Any]) -> Priority:
    """A request's place in the queue; interactive unless the request says otherwise.

    Raises:
        OptionError: it is not one of `PRIORITIES`.
    """
    return check_priority(parameters.get(PRIORITY, PRIORITIES[0]), PRIORITY)


def check_priority(priority: object, name: str = "priority") -> Priority:
    """Returns what was given.

    Args:
        priority: should be one of `PRIORITIES`.
        name: of what was given, for messages.

    Raises:
        OptionError: it is none of them.
    """
    for known in PRIORITIES:
        if priority == known:
            return known
    words = " or ".join(f'"{known}"' for known in PRIORITIES)
    raise OptionError(f"{name} is {shown(priority)}; expected {words}")


def seconds_from_timeout(timeout_us: int) -> float | None:
    """A request's `timeout` in seconds; `None` for 0, which is none.

    Raises:
        OptionError: it is below 0, or longer than clocks can tell.
    """
    if 1 << 63 <= timeout_us < 1 << 64:  # Triton reads a number below 0 as one without a sign
        timeout_us -= 1 << 64
    if not 0 <= timeout_us <= MAX_TIMEOUT_US:
        raise OptionError(
            f"timeout is {shown(timeout_us)}; expected 0 (none) to {MAX_TIMEOUT_US} microseconds"
        )
    return timeout_us / 1e6 if timeout_us else None


def parameters_from_json(text: str, most_bytes: int = 1 << 20) -> dict[str, Any]:
    """A request's parameters, from the JSON that Triton gives a Python model.

    Raises:
        OptionError: it has more bytes.
    """
    if len(text) > most_bytes:
        raise OptionError(
            f"the JSON of the request's parameters has {len(text)} bytes; expected at most "
            f"{most_bytes}. Send less; {how_to_raise('max_option_bytes')}."
        )
    parameters: dict[str, Any] = parse_json(text or "{}")
    return parameters


def key_from_parameters(parameters: Mapping[str, Any]) -> str:
    """A request's `CANCEL_KEY`; empty where it has none. Raises `OptionError`."""
    return _check_key(CANCEL_KEY, parameters.get(CANCEL_KEY, ""))


def cancelled_key(parameters: Mapping[str, Any]) -> str:
    """The key of the requests that a cancellation ends.

    Raises:
        OptionError: it is no key, or there are other parameters.
    """
    others = [name for name in parameters if name != CANCEL and not name.startswith("triton_")]
    if others:
        raise OptionError(f"{CANCEL} is given, and {shown(others[0])}; expected {CANCEL} alone")
    return _check_key(CANCEL, parameters[CANCEL])


def _check_key(name: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_KEY:
        expected = f"expected a string of at most {LONGEST_KEY} characters"
        raise OptionError(f"{name} is {shown(value)}; {expected}")
    return value


def unpacked(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A request's parameters, with those in `PACKED` in its place.

    Raises:
        OptionError: `PACKED` is no JSON object.
    """
    value = parameters.get(PACKED, "{}")
    try:
        packed = parse_json(value) if isinstance(value, str) else None
    except ValueError:
        packed = None
    if not isinstance(packed, dict):
        raise OptionError(f"{PACKED} is {shown(value)}; expected a JSON object in a string")
    return {**packed, **{name: given for name, given in parameters.items() if name != PACKED}}


def _is_no_option(name: str) -> bool:
    return name.startswith("triton_") or name in (
        "binary_data_output",
        STREAM,
        CANCEL_KEY,
        PRIORITY,
    )


def _from_parameter(option: Option, value: object) -> Any:
    if option.kind.json is None:
        return value
    try:
        parsed = parse_json(value) if isinstance(value, str) else None
    except ValueError:
        parsed = None
    if not isinstance(parsed, option.kind.json):
        raise OptionError(
            f"{option.name} is {shown(value)}; expected {option.kind.expected}, as JSON in a "
            f"string, such as {option.example}"
        )
    return parsed


def text_from_error(error: Exception) -> str:
    """An error as text that keeps its kind: `InputError: the prompt is empty`.

    It goes to callers, so it holds no path of the server and no stack; the whole text is logged.
    """
    for name, kind in ERROR_KINDS.items():
        if isinstance(error, kind):
            return f"{name}: {_for_callers(error)}"
    return f"EngineError: {type(error).__name__}: {_for_callers(error)}"


def _for_callers(error: Exception) -> str:
    """An error's text without what is the server's own business: paths, regions, stacks.

    Those are in the log. What a caller did wrong is told as it is.
    """
    full = str(error)
    if isinstance(error, UsageError):
        return full
    text = _PATH.sub("…", _STACK.sub("", full))
    if text != full:
        logger.error("%s: %s", type(error).__name__, full)
    return text


def status_from_error(error: Exception | None) -> str:
    """The name of Triton's error code for an error."""
    codes = (code for kind, code in STATUSES.items() if isinstance(error, kind))
    return next(codes, "INTERNAL")


def error_from_chain(text: str) -> IblipError:
    """The error behind what Triton says of a failed run of the chain."""
    kinds = (kind for phrase, kind in TRITON_PHRASES.items() if phrase in text)
    return error_from_text(text) or next(kinds, EngineError)(text)


def error_from_text(text: str) -> IblipError | None:
    """The error behind a server's text, whatever Triton put before it; `None` where none is."""
    match = _TAGGED.search(text)
    return ERROR_KINDS[match[1]](match[2]) if match else None
