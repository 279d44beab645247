"""Pieces of the report's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from iblip.serving.parity.report import number
from iblip.serving.parity.svg import COLOURS

Json = Mapping[str, Any]

Found = Sequence[tuple[int, str, Json]]
"""Of each build that ran a stage: its number, its label, what was found."""

VERDICTS: Mapping[bool | None, tuple[str, str]] = {
    True: ("ok", "kept"),
    False: ("bad", "broken"),
    None: ("none", "skipped"),
}
"""A verdict to the class of the page that shows it, and its word."""


def value(check: Json) -> str:
    """A check's number, its limit, whether it is kept, and where it was measured."""
    shown, where = number(float(check["value"])), ""
    if "where" in check:
        where = f"<br><small>{escape(check['where'])}</small>"
    if check["limit"] is None:
        return shown + where
    sign = "≤" if check["sense"] == "most" else "≥"
    return _kept(shown, f"{sign} {number(check['limit'])}", check["passed"]) + where


def limited(found: float, most: float) -> str:
    """A cell with a number that has a most."""
    shown = _kept(number(float(found)), f"≤ {number(most)}", float(found) <= most)
    return f"<td>{shown}</td>"


def _kept(shown: str, limit: str, passed: bool) -> str:
    kind = "ok" if passed else "bad"
    return f'<span class="pair"><span class="{kind}">{shown}</span> <small>{limit}</small></span>'


def badge(passed: bool | None) -> str:
    """A verdict."""
    kind, word = VERDICTS[passed]
    return f'<span class="badge {kind}">{word}</span>'


def key(index: int) -> str:
    """The colour of a build."""
    return f'<span class="key" style="background:var(--c{index % COLOURS})"></span>'


def legend(found: Found) -> str:
    """Every build's colour and label, in a line."""
    return " &ensp; ".join(f"{key(index)}{escape(label)}" for index, label, _ in found)


def heads(found: Found) -> str:
    """Every build's colour and label, as heads of a table's columns."""
    return "".join(f"<th>{key(index)}{escape(label)}</th>" for index, label, _ in found)


def more(title: str, body: str) -> str:
    """What is shown when it is asked for."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def table(head: str, rows: Sequence[str]) -> str:
    """A table that scrolls by itself where the page is narrower."""
    body = f"<tbody>{''.join(rows)}</tbody>"
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>{body}</table></div>'
