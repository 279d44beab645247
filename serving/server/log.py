"""Triton's log, read for people: which models are ready, and why one is not.

Knows the text of the log and nothing of processes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_LINE = re.compile(r"^[IWEF]\d{4} [\d:.]+ \d+ [\w.]+:\d+\] ")
_LOADING = re.compile(r"\"loading: ([^\":]+):\d+\"")
_READY = re.compile(r"successfully loaded '([^']+)'")
_STUB_FAILED = re.compile(r"pb_stub\.cc:\d+\] +(Failed .*)")
"""What a Python model's process says of itself in a line of Triton's form."""
_FAILED = re.compile(r"failed to load '([^']+)' version \d+: (.*)", re.DOTALL)

LAST_LINES = 15
"""How much of a log is shown where nothing in it explains itself."""

# A machine without a GPU is told so many times over; it is not why anything failed.
_HARMLESS = ("cuda", "dcgm", "nvml", "pinned")


def entries(text: str) -> list[str]:
    """The log's entries: a line that Triton began, with the lines that belong to it."""
    found: list[str] = []
    for line in text.splitlines():
        if _LINE.match(line) or not found:
            found.append(line)
        else:
            found[-1] += "\n" + line
    return found


def ready_models(text: str) -> list[str]:
    """The models that the server says are loaded, in that order."""
    return _READY.findall(text)


def loading_models(text: str) -> list[str]:
    """The models that the server has begun to load and has not loaded."""
    ready = ready_models(text)
    return [name for name in _LOADING.findall(text) if name not in ready]


def why(text: str) -> str:
    """Why a server with this log did not start, in as few lines as tell it."""
    found = (_FAILED.search(entry) for entry in entries(text))
    failures = {match[1]: match[2] for match in found if match}
    if failures:
        return "\n".join(f"{name}: {_told(reason)}" for name, reason in failures.items())
    errors = [_message(entry) for entry in entries(text) if entry.startswith(("E", "F"))]
    errors = [
        message for message in errors if not any(word in message.lower() for word in _HARMLESS)
    ]
    if errors:
        return "\n".join(_unique(errors))
    return "\n".join(text.splitlines()[-LAST_LINES:]) or "it wrote no log"


def last_words(text: str) -> str:
    """What processes of models, and shells that start them, wrote to the log before they ended."""
    lines = [line for line in text.splitlines() if line and not _LINE.match(line)]
    strays = [line for line in lines if line[0] not in "|+"]  # no rows of Triton's tables
    told = [*_STUB_FAILED.findall(text), *strays]
    return "\n".join(_unique(told[-LAST_LINES:])) or (
        "It wrote nothing: a file of the model may be missing (`iblip lint` tells), or something "
        "killed it, such as the kernel when memory is short."
    )


def _message(entry: str) -> str:
    return _LINE.sub("", entry).strip().strip('"')


def _told(reason: str) -> str:
    """A Python model's failure ends in a traceback's frames: the error itself comes first."""
    text = reason.replace("\\n", "\n").strip().strip('"')
    head, _, _ = text.partition("\n\nAt:\n")
    return head.strip()


def _unique(lines: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(lines))
