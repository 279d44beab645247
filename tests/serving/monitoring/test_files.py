"""The dashboard, the rules and the page of alerts are what the tables say, and hang together."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from iblip.serving.monitoring.__main__ import FILES
from iblip.serving.monitoring.alerts import ALERTS, RECORDED
from iblip.serving.monitoring.panels import PANELS
from iblip.serving.monitoring.queries import NAMES, families_in, without_variables
from iblip.serving.monitoring.rules import PAGE, runbook

ROOT = Path(__file__).parents[3]
QUERIES = [
    query for panels in PANELS.values() for panel in panels for query in panel.queries.values()
]


@pytest.mark.parametrize("name", FILES)
def test_files_are_current(name):
    command = "python -m iblip.serving.monitoring"
    assert (ROOT / name).read_text(encoding="utf-8") == FILES[name](), command


def test_files_are_written_to_a_checkout(tmp_path):
    command = [sys.executable, "-m", "iblip.serving.monitoring", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path).as_posix() for path in written} == set(FILES)


def test_every_metric_is_on_the_dashboard():
    shown = set().union(*map(families_in, QUERIES))
    assert shown >= NAMES
    assert {name for name in shown if name.startswith("iblip_")} == NAMES


def test_rules_read_only_metrics_that_there_are():
    for query in (*RECORDED.values(), *(alert.when for alert in ALERTS.values())):
        recorded = set(re.findall(r"instance:\w+:\w+", query))
        assert recorded <= set(RECORDED)
        plain = re.sub(r"instance:\w+:\w+", "", query)
        names = families_in(plain)
        assert names or recorded
        assert {name for name in names if name.startswith("iblip_")} <= NAMES


def test_every_panel_has_a_place_of_its_own():
    panels = json.loads(FILES["deploy/grafana/dashboard.json"]())["panels"]
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert {x for x, _ in cells} <= set(range(24))
    ids = [panel["id"] for panel in panels]
    assert len(ids) == len(set(ids))


def test_only_variables_of_the_dashboard_are_used():
    model = json.loads(FILES["deploy/grafana/dashboard.json"]())
    assert [one["name"] for one in model["templating"]["list"]] == ["datasource", "instance"]
    assert all("$" not in without_variables(query) for query in QUERIES)


def test_every_alert_leads_to_what_to_do():
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    anchors = {heading.lower() for heading in re.findall(r"^## (\w+)$", page, re.MULTILINE)}
    assert anchors == {name.lower() for name in ALERTS}
    assert {runbook(name) for name in ALERTS} == {f"{PAGE}#{anchor}" for anchor in anchors}
    titles = {panel.title for panels in PANELS.values() for panel in panels}
    assert set(re.findall(r"(?<!\*)\*(\w[^*]+)\*(?!\*)", page)) <= titles
