"""Elements of the report's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from iblip.serving.parity.report import WORDS, number
from iblip.serving.parity.svg import COLOURS

Json = Mapping[str, Any]

Runs = Sequence[tuple[int, str, Json]]
"""For each build that ran a stage: its index, its label, and the stage's JSON."""

CLASSES: Mapping[bool | None, str] = {True: "ok", False: "bad", None: "none"}
"""Verdict to its CSS class."""


def value(check: Json) -> str:
    """A check's value, its limit, whether it passed, and where it was measured."""
    shown, where = number(float(check["value"])), ""
    if "where" in check:
        where = f"<br><small>{escape(check['where'])}</small>"
    if check["limit"] is None:
        return shown + where
    sign = "≤" if check["sense"] == "most" else "≥"
    return _value_and_limit(shown, f"{sign} {number(check['limit'])}", check["passed"]) + where


def limited_cell(measured: float, most: float) -> str:
    """A table cell with a number and its upper limit."""
    shown = _value_and_limit(number(float(measured)), f"≤ {number(most)}", float(measured) <= most)
    return f"<td>{shown}</td>"


def _value_and_limit(shown: str, limit: str, passed: bool) -> str:
    kind = "ok" if passed else "bad"
    return f'<span class="pair"><span class="{kind}">{shown}</span> <small>{limit}</small></span>'


def size(count: float) -> str:
    """A number of bytes, in the largest unit (a power of ten) that leaves at least 1."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def badge(passed: bool | None) -> str:
    """A verdict as a badge."""
    return f'<span class="badge {CLASSES[passed]}">{WORDS[passed]}</span>'


def key(index: int) -> str:
    """The colour key of a build."""
    return f'<span class="key" style="background:var(--c{index % COLOURS})"></span>'


def legend(runs: Runs) -> str:
    """Every build's colour and label, on one line."""
    return " &ensp; ".join(f"{key(index)}{escape(label)}" for index, label, _ in runs)


def heads(runs: Runs) -> str:
    """Every build's colour and label, as column headers of a table."""
    return "".join(f"<th>{key(index)}{escape(label)}</th>" for index, label, _ in runs)


def collapsible(title: str, body: str) -> str:
    """An element that is shown when its title is clicked."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def table(head: str, rows: Sequence[str]) -> str:
    """A table that scrolls by itself if the page is narrower."""
    body = f"<tbody>{''.join(rows)}</tbody>"
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>{body}</table></div>'
