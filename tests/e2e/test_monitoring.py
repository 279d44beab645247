"""Every metric that the dashboard and the rules read is there, on a real server and its gateway."""

from __future__ import annotations

import re
import shutil
import subprocess
import urllib.request

import pytest

from iblip.serving.monitoring.alerts import ALERTS, RECORDED
from iblip.serving.monitoring.panels import PANELS
from iblip.serving.monitoring.queries import NAMES, families_in
from iblip.serving.server.health import Health, HealthServer
from iblip.serving.steps.metrics import VISION_CACHE
from tests.serving.gateway.running import gateway

MODEL = "instructblip-demo-vicuna"
GPU = {"nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes", "nv_gpu_utilization"}
"""Triton has them where it sees a GPU."""

OPTIONAL = set(VISION_CACHE)
"""Where there is such a cache; `test_vision_cache.py` reads them."""


@pytest.fixture(scope="module")
def shown(served_demo):
    """What Prometheus reads, by who shows it."""
    served = served_demo(MODEL)
    with (
        gateway(served.url, name=MODEL) as running,
        HealthServer(Health(state="ready"), "127.0.0.1", 0) as health,
    ):
        urls = {
            "triton": served.server.metrics_url,
            "supervisor": f"http://127.0.0.1:{health.port}/metrics",
        }
        texts = {who: urllib.request.urlopen(url).read().decode() for who, url in urls.items()}
        return texts | {"gateway": running.send("GET", "/metrics")[2].decode()}


def test_what_dashboard_and_rules_read_is_there(shown):
    queries = [
        query for panels in PANELS.values() for one in panels for query in one.queries.values()
    ]
    queries += [re.sub(r"instance:\w+:\w+", "", alert.when) for alert in ALERTS.values()]
    used = set().union(*map(families_in, [*queries, *RECORDED.values()]))
    there = set(re.findall(r"^# TYPE (\w+) ", "\n".join(shown.values()), re.MULTILINE))
    assert there >= NAMES - OPTIONAL
    assert used - there - {"up"} <= GPU | OPTIONAL


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is missing: apt-get install prometheus"
)
@pytest.mark.parametrize("who", ["triton", "supervisor", "gateway"])
def test_our_names_are_as_prometheus_wants_them(shown, who):
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=shown[who],
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = done.stderr.splitlines()
    assert [line for line in complaints if not line.startswith("nv_")] == []
    assert bool(complaints) == (who == "triton")  # Triton's own names are older than the rules
