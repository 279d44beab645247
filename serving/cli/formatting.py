"""Tables, counts, sizes and ages as the commands print them."""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

import click

from iblip.export.errors import IblipError
from iblip.export.messages import printable

FORMAT = 1
"""Version of the documents that `--json` prints. It grows when a field is renamed or removed, not
when one is added. `docs/json.md` lists the fields."""


VERDICTS: Mapping[str, str] = {
    "pass": "green",
    "ok": "green",
    "fail": "red",
    "failed": "red",
    "error": "red",
    "warning": "yellow",
}
"""The words that are coloured on a terminal, in small letters."""

_VERDICT = re.compile(
    r"^(?:error|warning|PASS|FAIL)(?=:)"  # a message, or the last line of a report
    r"|(?<=  )(?:pass|ok|FAIL|FAILED)(?=  |$)"  # a cell of a table, or the end of a line
    r"|(?<=: )(?:error|warning)(?=: )",  # a finding: `PATH:LINE: error: …`
    re.MULTILINE,
)


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Prints for a person or a program; what a terminal would obey is shown escaped."""
    click.echo(printable(text), err=err, nl=nl)


def echo_verdicts(text: str, *, err: bool = False) -> None:
    """As `echo`; on a terminal, words of `VERDICTS` are coloured where they are verdicts.

    Not for texts of others, such as answers, where such a word is a word. As `NO_COLOR` has it,
    that variable ends all colours.
    """
    shown = printable(text)
    stream = sys.stderr if err else sys.stdout
    if has_colours(stream):
        shown = _VERDICT.sub(lambda word: click.style(word[0], fg=VERDICTS[word[0].lower()]), shown)
        click.echo(shown, err=err, color=True)
    else:
        click.echo(shown, err=err)


def has_colours(stream: TextIO) -> bool:
    """Whether what is written to a stream may be coloured."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream is not None and stream.isatty()


class FileError(IblipError):
    """A file, or what stdout leads to, cannot be read or written: the disk is full, for example."""


def is_of_output(error: OSError) -> bool:
    """Whether `click.echo` raised an error, which writes all that a command prints."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__") == click.echo.__module__


def discard_output() -> None:
    """What is still to be written to stdout goes nowhere; Python would complain when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def echo_json(document: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Prints a document of `--json` on stdout, with its version `format` first.

    Args:
        document: JSON-ready; its own `format` is kept, if it has one.
        indent: spaces a level; `None` is one line.
    """
    echo(json.dumps({"format": FORMAT, **document}, indent=indent, ensure_ascii=False))


def width_of_terminal() -> int | None:
    """Characters of a line of stdout; `None` where it is no terminal, and lines have no end."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table_lines(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Lines of aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(map(str.ljust, row, widths)).rstrip()


def fact_lines(facts: Mapping[str, Any], indent: str) -> list[str]:
    """Lines of names and values, nested mappings indented further."""
    lines = []
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{name}:", *fact_lines(value, indent + "  ")]
        elif isinstance(value, int) and name.endswith("bytes"):
            lines.append(f"{indent}{name}: {value:,} ({size_of(value)})")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            lines.append(f"{indent}{name}: {text}")
    return lines


def count_of(number: int, noun: str) -> str:
    """A number with its noun: `1 plan`, `2 plans`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def size_of(count: int) -> str:
    """Bytes in the largest decimal unit that fits: `1.50 MB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


def age_of(moment: str) -> str:
    """How long ago a moment (ISO 8601) was, in one unit."""
    then = datetime.datetime.fromisoformat(moment)
    seconds = (datetime.datetime.now(datetime.UTC) - then).total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
