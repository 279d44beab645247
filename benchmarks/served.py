"""Serves a build with chosen limits, and reads the server's metrics."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from iblip.export.artifact.manifest import Manifest
from iblip.serving.repository.assembling import REPOSITORY, repository_from_engines
from iblip.serving.server.server import TritonServer
from iblip.serving.steps.metrics import PERIOD_S

BUSY = ("iblip_slots_used", "iblip_requests_running", "iblip_requests_waiting")
"""The metrics that are 0 when nothing runs."""

_LINE = re.compile(r'^(iblip_\w+)\{model="instructblip"(?:,reason="(\w+)")?\} (\S+)$', re.M)


@contextmanager
def serve(directory: Path, **limits: int) -> Iterator[TritonServer]:
    """Serves a build with these `ServingLimits`; those not given are the build's own."""
    limit(directory, **limits)
    with TritonServer(directory / REPOSITORY) as server:
        yield server


def limit(directory: Path, **limits: Any) -> None:
    """Writes a build's model repository with these `ServingLimits`."""
    manifest = Manifest.read(directory)
    limited = replace(manifest, limits=replace(manifest.limits, **limits))
    repository_from_engines(directory, limited)


def engine_metrics(server: TritonServer) -> dict[str, float]:
    """The engine's metrics, by name, or by `name/reason`."""
    with urllib.request.urlopen(server.metrics_url) as response:
        text = response.read().decode()
    return {
        f"{name}/{reason}" if reason else name: float(value)
        for name, reason, value in _LINE.findall(text)
    }


def idle_metrics(server: TritonServer, timeout_s: float = 20.0) -> dict[str, float]:
    """The metrics once nothing runs, or after `timeout_s` at the latest."""
    end = time.monotonic() + timeout_s
    while True:
        time.sleep(2 * PERIOD_S)
        metrics = engine_metrics(server)
        if time.monotonic() > end or not any(metrics[name] for name in BUSY):
            return metrics
