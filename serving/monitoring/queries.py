"""Parts of queries in PromQL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from iblip.serving.gateway.metrics import GATEWAY
from iblip.serving.metrics import Family
from iblip.serving.server.health import SUPERVISOR
from iblip.serving.steps.metrics import DECODING, FAMILIES, RATE, VISION_CACHE

TABLES: Mapping[str, Family[Any]] = {
    **FAMILIES,
    **DECODING,
    **VISION_CACHE,
    **SUPERVISOR,
    **GATEWAY,
}
"""Every family of ours but `RATE`, by name."""

NAMES = frozenset((*TABLES, RATE))
"""The names of all our families."""

WINDOW = "$__rate_interval"
"""Grafana's variable for the window of a rate: four scrapes or more."""

FILTER = '{instance=~"$instance"}'
"""The servers that were chosen in the dashboard."""

VARIABLES = {"$__rate_interval": "1m", "$__range": "1h", "$instance": ".*"}
"""Values of the dashboard's variables where there is no dashboard: every server, a minute."""

_NAME = re.compile(r"\b(?:iblip|nv)_\w+|\bup\b")
_PART = re.compile(r"_(?:bucket|sum|count)$")


def rate(series: str, window: str = WINDOW) -> str:
    """How much a counter grows per second."""
    return f"rate({series}[{window}])"


def quantile(share: float, name: str, *, by: str = "le", chosen: str = "", window: str) -> str:
    """The value of a histogram below which so great a share of all values is.

    Args:
        share: 0 to 1.
        name: of the histogram.
        by: the labels that distinguish results, `le` among them.
        chosen: what selects its series.
        window: over which values are taken.
    """
    buckets = rate(f"{name}_bucket{chosen}", window)
    return f"histogram_quantile({share:g}, sum by ({by}) ({buckets}))"


def without_variables(query: str, values: Mapping[str, str] = VARIABLES) -> str:
    """A query of the dashboard as Prometheus takes it."""
    for variable, value in values.items():
        query = query.replace(variable, value)
    return query


def families_in(query: str) -> set[str]:
    """The names of the families that a query reads."""
    names = set(_NAME.findall(query))
    return {
        name if name in NAMES or not name.startswith("iblip_") else _PART.sub("", name)
        for name in names
    }
