"""What to do about each alert, as a page."""

from __future__ import annotations

from iblip.serving.monitoring.alerts import ALERTS, Alert

HEAD = """\
# Alerts

What to do when an alert of `deploy/prometheus/alerts.yml` fires ([how to use
it](operating.md#dashboard-and-alerts)). The panels are those of `deploy/grafana/dashboard.json`.
`python -m iblip.serving.monitoring` writes this page.
"""


def alerts_page() -> str:
    """The page, in Markdown."""
    return "\n".join([HEAD, *(_section(name, alert) for name, alert in ALERTS.items())])


def _section(name: str, alert: Alert) -> str:
    steps = "".join(f"{number}. {step}\n" for number, step in enumerate(alert.steps, 1))
    lasting = "" if alert.lasting == "0m" else f", for {alert.lasting}"
    return (
        f"## {name}\n\n{alert.summary} ({alert.severity})\n\n"
        f"Fires when `{alert.when}`{lasting}.\n\n{steps}"
    )
