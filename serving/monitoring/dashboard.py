"""The dashboard as Grafana imports it (its JSON model, schema 39: Grafana 10.4 and later)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from iblip.serving.monitoring.panels import PANELS, Panel

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
"""The data source that is chosen in the dashboard."""

WIDTH = 24
"""Of Grafana's grid."""

HEIGHT = {"timeseries": 8, "stat": 8}


def dashboard() -> str:
    """The dashboard, in JSON."""
    return json.dumps(_model(), indent=1) + "\n"


def _model() -> Mapping[str, Any]:
    return {
        "uid": "iblip",
        "title": "iblip",
        "description": "Made by python -m iblip.serving.monitoring. Docs: docs/operating.md",
        "tags": ["iblip", "triton"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_source_variable(), _instance_variable()]},
        "panels": list(_panels()),
    }


def _source_variable() -> Mapping[str, Any]:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
    }


def _instance_variable() -> Mapping[str, Any]:
    query = "label_values(iblip_slots, instance)"
    return {
        "name": "instance",
        "label": "Server",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": "StandardVariableQuery"},
        "refresh": 2,  # whenever the time range changes
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _panels() -> Iterator[Mapping[str, Any]]:
    top, number = 0, 0
    for row, panels in PANELS.items():
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": row,
            "collapsed": False,
            "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": top},
            "panels": [],
        }
        top += 1
        left, tallest = 0, 0
        width = WIDTH // min(len(panels), 4) if len(panels) < 5 else WIDTH // 3
        for panel in panels:
            number += 1
            if left + width > WIDTH:
                left, top = 0, top + tallest
            tallest = HEIGHT[panel.kind]
            place = {"h": tallest, "w": width, "x": left, "y": top}
            yield {"id": number, "gridPos": place, **_panel(panel)}
            left += width
        top += tallest


def _panel(panel: Panel) -> Mapping[str, Any]:
    custom = {"fillOpacity": 0, "showPoints": "never", "spanNulls": False}
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.kind == "timeseries":
        defaults["custom"] = custom
        options: dict[str, Any] = {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    else:
        options = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "editorMode": "code",
                "expr": query,
                "legendFormat": legend,
                "range": True,
            }
            for index, (legend, query) in enumerate(panel.queries.items())
        ],
    }
