"""`python -m iblip.serving.monitoring [CHECKOUT]`: writes dashboard, rules and alerts' page."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from iblip.serving.monitoring.dashboard import dashboard
from iblip.serving.monitoring.page import alerts_page
from iblip.serving.monitoring.rules import PAGE, rules

FILES: Mapping[str, Callable[[], str]] = {
    "deploy/grafana/dashboard.json": dashboard,
    "deploy/prometheus/alerts.yml": rules,
    PAGE: alerts_page,
}
"""What makes each file, by its path in a checkout."""

if __name__ == "__main__":
    checkout = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    for name, make in FILES.items():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(make(), encoding="utf-8")
