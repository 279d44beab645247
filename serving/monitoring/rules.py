"""The rules as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator

from iblip.serving.monitoring.alerts import ALERTS, RECORDED

PAGE = "docs/alerts.md"
"""Says what to do about each alert."""

HEAD = """\
# Made by `python -m iblip.serving.monitoring`. Change thresholds here, in a copy; docs/operating.md
# says how the rules are used.
groups:
"""


def rules() -> str:
    """Recording rules and alerts, in YAML."""
    return HEAD + "".join(f"{line}\n" for line in (*_recorded(), *_alerts()))


def runbook(name: str) -> str:
    """Where the page says what to do about an alert."""
    return f"{PAGE}#{name.lower()}"


def _recorded() -> Iterator[str]:
    yield "  - name: iblip-recorded"
    yield "    rules:"
    for name, query in RECORDED.items():
        yield f"      - record: {name}"
        yield f"        expr: {_quoted(query)}"


def _alerts() -> Iterator[str]:
    yield "  - name: iblip-alerts"
    yield "    rules:"
    for name, alert in ALERTS.items():
        yield f"      - alert: {name}"
        yield f"        expr: {_quoted(alert.when)}"
        yield f"        for: {alert.lasting}"
        yield f"        labels: {{severity: {alert.severity}}}"
        yield "        annotations:"
        yield f"          summary: {_quoted(alert.summary)}"
        yield f"          runbook: {runbook(name)}"


def _quoted(text: str) -> str:
    """As a string in YAML's single quotes, in which nothing but these is special."""
    return "'" + text.replace("'", "''") + "'"
