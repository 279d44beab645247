"""A build behind a real server, with limits of one's own choice; and what that server tells."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from iblip.export.artifact.manifest import Manifest
from iblip.serving.repository.assembling import REPOSITORY, repository_from_engines
from iblip.serving.server.server import TritonServer
from iblip.serving.steps.metrics import PERIOD_S

BUSY = ("iblip_slots_used", "iblip_requests_running", "iblip_requests_waiting")
"""The metrics that are 0 where nothing runs."""

_LINE = re.compile(r'^(iblip_\w+)\{model="language_model"(?:,reason="(\w+)")?\} (\S+)$', re.M)


@contextmanager
def served(directory: Path, **limits: int) -> Iterator[TritonServer]:
    """Serves a build with these `ServingLimits`, and the build's own where none is given."""
    manifest = Manifest.read(directory)
    chosen = replace(manifest, limits=replace(manifest.limits, **limits))
    repository_from_engines(directory, chosen)
    with TritonServer(directory / REPOSITORY) as server:
        yield server


def engine_metrics(server: TritonServer) -> dict[str, float]:
    """The engine's metrics, by name, or by `name/reason`."""
    with urllib.request.urlopen(server.metrics_url) as response:
        text = response.read().decode()
    return {
        f"{name}/{reason}" if reason else name: float(value)
        for name, reason, value in _LINE.findall(text)
    }


def idle_metrics(server: TritonServer, timeout_s: float = 20.0) -> dict[str, float]:
    """The metrics once nothing runs, or as they are after that time."""
    end = time.monotonic() + timeout_s
    while True:
        time.sleep(2 * PERIOD_S)
        found = engine_metrics(server)
        if time.monotonic() > end or not any(found[name] for name in BUSY):
            return found
