"""Small tables in HTML, for notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape


def table_from_facts(title: str, facts: Mapping[str, str]) -> str:
    """A heading and a table with a row for each fact, as HTML. Everything is escaped."""
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th>'
        f'<td style="text-align:left">{escape(fact)}</td></tr>'
        for name, fact in facts.items()
    )
    return f"<div><b>{escape(title)}</b><table>{rows}</table></div>"
