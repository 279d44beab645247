"""The files of deploy/prometheus as Prometheus itself reads them. Debian's `prometheus` has it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from iblip.serving.gateway.metrics import Metrics
from iblip.serving.metrics import text_from_status
from iblip.serving.monitoring.alerts import ALERTS, RECORDED
from iblip.serving.monitoring.panels import PANELS
from iblip.serving.monitoring.queries import without_variables
from iblip.serving.monitoring.rules import runbook
from iblip.serving.server.health import SUPERVISOR, Health

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is missing: apt-get install prometheus"
)

DEPLOY = Path(__file__).parents[3] / "deploy" / "prometheus"
GIB = 2**30

SERVER = 'instance="a:8002",job="iblip",model="instructblip"'
WATCH = 'instance="a:8003",job="iblip-supervisor"'
GATE = 'instance="a:8080",job="iblip-gateway"'
HOST = 'instance="a:8002",job="iblip"'


def ends(**rates):
    """Series of ended requests, by reason as `start+step`."""
    return {
        f'iblip_requests_total{{{SERVER},reason="{reason}"}}': f"0+{step}x400"
        for reason, step in rates.items()
    }


def first_tokens(step, slow):
    """Series of a histogram: so many requests each minute, and how many of these take over 5 s."""
    name = f"iblip_time_to_first_token_seconds_bucket{{{SERVER}"
    return {
        f'{name},le="1"}}': f"0+{step - slow}x400",
        f'{name},le="5"}}': f"0+{step - slow}x400",
        f'{name},le="10"}}': f"0+{step}x400",
        f'{name},le="+Inf"}}': f"0+{step}x400",
    }


def slots(used, waiting):
    return {
        f"iblip_slots{{{SERVER}}}": "8x400",
        f"iblip_slots_used{{{SERVER}}}": f"{used}x400",
        f"iblip_requests_waiting{{{SERVER}}}": f"{waiting}x400",
    }


def memory(kind, start, step):
    """Series of used and of all memory, 10 GiB, growing by `step` GiB a minute."""
    labels = HOST + (',gpu_uuid="g"' if kind == "gpu" else "")
    return {
        f"nv_{kind}_memory_total_bytes{{{labels}}}": f"{10 * GIB}x400",
        f"nv_{kind}_memory_used_bytes{{{labels}}}": f"{int(start * GIB)}+{int(step * GIB)}x400",
    }


def state(ready, started, restarts="0x400"):
    return {
        f"iblip_server_ready{{{WATCH}}}": f"{ready}x400",
        f"iblip_server_started{{{WATCH}}}": f"{started}x400",
        f"iblip_server_restarts_total{{{WATCH}}}": restarts,
    }


def responses(**rates):
    return {
        f'iblip_gateway_responses_total{{{GATE},status="{status[1:]}"}}': f"0+{step}x400"
        for status, step in rates.items()
    }


CASES = {
    "IblipServerDown": ({f"up{{{HOST}}}": "0x400"}, {f"up{{{HOST}}}": "1x400"}),
    "IblipNotReady": (state(0, 1), state(0, 0)),
    "IblipStartsSlowly": (state(0, 0), state(1, 1)),
    "IblipRestarts": (state(1, 1, "0x170 1x230"), state(1, 1, "3x400")),
    "IblipRefusals": (ends(eos=10, refused=2), ends(eos=10, refused=0)),
    "IblipSlotsFull": (slots(8, 5), slots(8, 0)),
    "IblipFirstTokenSlow": (first_tokens(60, 12), first_tokens(60, 1)),
    "IblipErrors": (
        ends(eos=60, failed=3, late=3, cancelled=9, invalid=900),
        ends(eos=60, failed=1, late=1),
    ),
    "IblipHostMemory": (memory("cpu", 9.5, 0), memory("cpu", 9, 0)),
    "IblipHostMemoryGrows": (memory("cpu", 2, 0.02), memory("cpu", 2, 0.002)),
    "IblipGpuMemoryGrows": (memory("gpu", 2, 0.02), memory("gpu", 9, 0)),
    "IblipGatewayErrors": (
        responses(_200=60, _400=900, _500=4),
        responses(_200=60, _400=30, _503=1),
    ),
}
"""By alert, series in steps of a minute with which it fires after three hours, and others."""

LABELS = {
    "IblipServerDown": HOST,
    **dict.fromkeys(("IblipNotReady", "IblipStartsSlowly", "IblipRestarts"), WATCH),
    **dict.fromkeys(("IblipRefusals", "IblipErrors", "IblipFirstTokenSlow"), SERVER),
    "IblipSlotsFull": SERVER,
    "IblipHostMemory": HOST,
    "IblipHostMemoryGrows": HOST,
    "IblipGpuMemoryGrows": HOST + ',gpu_uuid="g"',
    "IblipGatewayErrors": GATE,
}
SUMMED = {"IblipRefusals", "IblipErrors", "IblipFirstTokenSlow", "IblipGatewayErrors"}
"""Alerts without the label `job`: their series are sums."""


def promtool(*arguments, **options):
    done = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def labels_of(name):
    labels = dict(part.split("=") for part in LABELS[name].replace('"', "").split(","))
    if name in SUMMED:
        del labels["job"]
    return labels


def run_case(tmp_path, name, series, *, fires):
    expected = {
        "exp_labels": {"severity": ALERTS[name].severity, **labels_of(name)},
        "exp_annotations": {"summary": ALERTS[name].summary, "runbook": runbook(name)},
    }
    case = {
        "interval": "1m",
        "input_series": [{"series": key, "values": values} for key, values in series.items()],
        "alert_rule_test": [
            {"eval_time": "3h", "alertname": name, "exp_alerts": [expected] if fires else []}
        ],
    }
    file = tmp_path / "case.yml"  # JSON is YAML
    file.write_text(json.dumps({"rule_files": [str(DEPLOY / "alerts.yml")], "tests": [case]}))
    promtool("test", "rules", file)


def test_every_alert_has_a_case():
    assert CASES.keys() == ALERTS.keys()


@pytest.mark.parametrize("name", CASES)
def test_an_alert_fires(tmp_path, name):
    run_case(tmp_path, name, CASES[name][0], fires=True)


@pytest.mark.parametrize("name", CASES)
def test_an_alert_is_silent(tmp_path, name):
    run_case(tmp_path, name, CASES[name][1], fires=False)


def test_a_supervisor_that_was_restarted_itself_is_noticed(tmp_path):
    series = state(1, "1x170 0x1 1")
    run_case(tmp_path, "IblipRestarts", series, fires=True)


def test_the_rules_are_as_prometheus_wants_them():
    out = promtool("check", "rules", "--lint=all", "--lint-fatal", DEPLOY / "alerts.yml")
    assert f"{len(ALERTS) + len(RECORDED)} rules found" in out


def test_the_example_of_a_config_is_valid():
    promtool("check", "config", DEPLOY / "prometheus.yml")


def test_every_query_of_the_dashboard_is_valid(tmp_path):
    queries = [
        query for panels in PANELS.values() for panel in panels for query in panel.queries.values()
    ]
    rules = [
        {"record": f"panel:query:{index}", "expr": without_variables(query)}
        for index, query in enumerate(queries)
    ]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    assert f"{len(queries)} rules found" in promtool("check", "rules", file)


def test_the_metrics_of_gateway_and_supervisor_are_as_prometheus_wants_them():
    metrics = Metrics()
    metrics.responses[200] += 1
    metrics.tokens["prompt"] += 1
    metrics.whole.add(0.5)
    for text in (metrics.text(), text_from_status(SUPERVISOR, Health())):
        assert promtool("check", "metrics", input=text) == ""
