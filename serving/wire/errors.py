"""Errors as text that keeps their kind, and what of them a caller is told."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

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

logger = logging.getLogger(__name__)

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
