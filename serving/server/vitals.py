"""What can be seen of a running server from outside: its processes, their heartbeats, their work.

A server that makes progress is alive, however slow it is. `Vitals.fault` names what is dead or
stands still; `progress` tells slow from stuck where a question got no answer in time.
"""

from __future__ import annotations

import os
import re
import time
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from iblip.serving.server.children import children_of, is_running_child, is_zombie, model_of

STALE_S = 4.0
"""Age in seconds from which a heartbeat counts as missed; one is due every half second."""

IDLE_SHARE = 0.05
"""Share of one core below which a process with work to do counts as standing still."""

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_SERIES = re.compile(r'^(\w+)\{[^}]*model="([^"]+)"[^}]*\} (\S+)$', re.MULTILINE)

DONE = ("nv_inference_exec_count", "iblip_generated_tokens_total", "iblip_prompt_tokens_total")
TO_DO = ("nv_inference_pending_request_count", "iblip_requests_running", "iblip_requests_waiting")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is wrong with a server.

    Attributes:
        model: the Triton model whose process it is; empty if it is Triton itself, or unknown.
        reason: a sentence for people.
    """

    model: str
    reason: str


class Vitals:
    """Watches the processes of one server, from the moment when it is ready.

    Args:
        server: Triton's process id. It leads the process group of its Python models.
        heartbeats: the folder where each Python model touches a file named after its process id.
    """

    def __init__(self, server: int, heartbeats: Path) -> None:
        self._server, self._heartbeats = server, heartbeats
        self._models = _python_models(server)
        self._stale: frozenset[int] = frozenset()

    @property
    def is_triton_running(self) -> bool:
        """Whether Triton itself runs; its models end with it."""
        return Path(f"/proc/{self._server}").exists() and not is_zombie(self._server)

    def fault(self) -> Fault | None:
        """The process that has died or stands still, if one has.

        A heartbeat must be missed at two calls in a row: where the whole machine stood still (a
        virtual machine that was moved, a laptop that slept), all are old at the first.
        """
        for pid, model in self._models.items():
            if not is_running_child(pid, self._server):
                return Fault(model=model, reason=f"the process of {model} has died")
        before, ages = self._stale, self._ages()
        self._stale = frozenset(pid for pid, age in ages.items() if age > STALE_S)
        for pid in self._stale & before:
            model = self._models[pid]
            reason = f"the process of {model} has stood still for {ages[pid]:.0f} s"
            return Fault(model=model, reason=reason)
        return None

    def _ages(self) -> dict[int, float]:
        """Seconds since the last heartbeat of each process that has ever shown one.

        The others run somebody else's models.
        """
        now = time.time()
        paths = {pid: self._heartbeats / str(pid) for pid in self._models}
        return {pid: now - path.stat().st_mtime for pid, path in paths.items() if path.exists()}

    def progress(self, metrics: str) -> Progress:
        """What every model has done so far, and has to do.

        Args:
            metrics: Prometheus' text, as Triton exposes it.
        """
        done = defaultdict[str, float](float)
        to_do = defaultdict[str, float](float)
        for name, model, value in _SERIES.findall(metrics):
            if name in DONE:
                done[model] += float(value)
            if name in TO_DO:
                to_do[model] += float(value)
        cpu_s = defaultdict[str, float](float)
        for pid, model in self._models.items():
            cpu_s[model] += _cpu_s(pid)
        return Progress(time_s=time.monotonic(), done=done, to_do=to_do, cpu_s=cpu_s)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What each model of a server had done at one moment. By model's name.

    Attributes:
        time_s: of a monotonic clock.
        done: batches and tokens since its start.
        to_do: requests that wait or run.
        cpu_s: seconds of CPU time of its processes.
    """

    time_s: float
    done: Mapping[str, float]
    to_do: Mapping[str, float]
    cpu_s: Mapping[str, float]

    def stuck(self, since: Progress) -> list[str]:
        """The models that had work at both moments, and neither finished any nor computed."""
        elapsed = self.time_s - since.time_s
        return [
            model
            for model, to_do in self.to_do.items()
            if min(to_do, since.to_do.get(model, 0)) > 0
            and self.done.get(model) == since.done.get(model)
            and self.cpu_s.get(model, 0) - since.cpu_s.get(model, 0) < IDLE_SHARE * elapsed
        ]


def read_metrics(url: str, timeout_s: float) -> str:
    """Prometheus' text from a server. Raises `OSError`."""
    with urllib.request.urlopen(url, timeout=timeout_s) as response:
        text: str = response.read().decode()
    return text


def _python_models(server: int) -> dict[int, str]:
    """The running processes of a server's Python models: process id to model."""
    running = (pid for pid in children_of(server) if not is_zombie(pid))
    models = {pid: model_of(pid) for pid in running}
    return {pid: model for pid, model in models.items() if model}


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S  # utime and stime
