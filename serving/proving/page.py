"""A record as one self-contained HTML page, in the style of the parity report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from iblip.export.system.files import write_whole
from iblip.serving.parity.markup import badge, table
from iblip.serving.proving.record import Record
from iblip.serving.proving.stages import STAGES
from iblip.serving.proving.text import head_of, shown_number

PASSED: Mapping[str, bool | None] = {"passed": True, "failed": False}
"""A verdict to whether the build passed; of others neither."""


def write_page(record: Record, path: Path) -> Path:
    """Writes a record's page beside its file, and returns the page's path."""
    page = path.with_suffix(".html")
    write_whole(page, page_from_record(record).encode())
    return page


def page_from_record(record: Record) -> str:
    """The page of a record: the machine, a table of stages, and every fact."""
    style = files("iblip.serving.parity").joinpath("page.css").read_text(encoding="utf-8")
    name = escape(record.head["build"])
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Proof of {name}</title><style>{style}</style></head><body><main>",
            f"<h1>Proof of {name} {_verdict(record)}</h1>",
            f'<p class="callout">{escape(head_of(record.head))} {escape(record.reason)}</p>',
            _facts(record),
            _summary(record),
            *_stages(record),
            "</main></body></html>\n",
        ]
    )


def _verdict(record: Record) -> str:
    passed = PASSED.get(record.verdict)
    return badge(passed) if passed is not None else f"({escape(record.verdict)})"


def _facts(record: Record) -> str:
    head = record.head
    versions = ", ".join(f"{name} {version}" for name, version in head["versions"].items())
    facts = {
        "Created": head["created"],
        "Engines": ", ".join(f"{name} {kind}" for name, kind in head["engines"].items()),
        "Precision": ", ".join(f"{name} {word}" for name, word in head["precision"].items()),
        "Versions": f"Python {head['python']}, {versions}",
        "For --engine auto": "proven" if record.proven else "not proven",
    }
    items = (f"<dt>{name}</dt><dd>{escape(fact)}</dd>" for name, fact in facts.items())
    return f"<dl>{''.join(items)}</dl>"


def _summary(record: Record) -> str:
    rows = []
    for name, stage in record.stages.items():
        failed = stage["ended"] == "failed" or any(f["passed"] is False for f in stage["facts"])
        passed = False if failed else True if stage["ended"] == "done" else None
        title = escape(STAGES[name].title) if name in STAGES else escape(name)
        link = f'<th><a href="#{escape(name)}">{title}</a></th>'
        reason = escape(stage["reason"] or ("" if stage["ended"] else "cut short"))
        rows.append(f"<tr>{link}<td>{badge(passed)} <small>{reason}</small></td></tr>")
    return table("<th>Stage</th><th>Result</th>", rows)


def _stages(record: Record) -> Iterator[str]:
    for name, stage in record.stages.items():
        if stage["facts"]:
            title = STAGES[name].title if name in STAGES else name
            yield f'<section id="{escape(name)}"><h2>{escape(title)}</h2>'
            yield table("<th>Fact</th><th>Value</th>", [_row(fact) for fact in stage["facts"]])
            yield "</section>"


def _row(fact: Mapping[str, Any]) -> str:
    value = fact["value"]
    shown = escape(value if isinstance(value, str) else shown_number(value))
    if "limit" in fact:
        sign = "≤" if fact["sense"] == "most" else "≥"
        shown += f" <small>{sign} {shown_number(fact['limit'])}</small>"
    if fact["passed"] is not None:
        shown = f'<span class="{"ok" if fact["passed"] else "bad"}">{shown}</span>'
    where = f"<br><small>{escape(fact['where'])}</small>" if fact.get("where") else ""
    return f"<tr><th>{escape(fact['name'])}</th><td>{shown}{where}</td></tr>"
