"""Request parameters: generation options, and how a request is to be treated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

from iblip.engines.language_model.option_table import OPTIONS, Option
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import Priority
from iblip.export.artifact.manifest import how_to_raise
from iblip.export.errors import OptionError
from iblip.export.images import Reading, check_reading
from iblip.export.messages import shown
from iblip.export.system.json_text import parse_json
from iblip.serving.wire.names import CANCEL, CANCEL_KEY, PACKED, PREPROCESSING, PRIORITY, STREAM

MAX_TIMEOUT_US = 10**15
"""The longest `timeout` of a request, about 30 years."""

PRIORITIES: tuple[Priority, ...] = get_args(Priority)

LONGEST_KEY = 256
"""Characters of a `CANCEL_KEY`, at most."""


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


def reading_from_parameters(parameters: Mapping[str, Any]) -> Reading | None:
    """How encoded images become RGB; `None` where the request does not say.

    Raises:
        OptionError: it is none of `READINGS`.
    """
    reading = parameters.get(PREPROCESSING)
    return None if reading is None else check_reading(reading)


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
        PREPROCESSING,
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
