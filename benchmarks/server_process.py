"""`iblip serve` in a process of its own, of this checkout or of another, and its processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from iblip.serving.server.children import model_of

ROOT = Path(__file__).resolve().parents[1]

TRITON = "tritonserver"

PROBE_S = 2.0
"""Seconds that a probe may take; one that takes longer is not ready."""

STOP_S = 60.0


def python_of(checkout: Path, *arguments: str) -> dict[str, object]:
    """What `subprocess` runs to start `python -m iblip` of a checkout."""
    return {
        "args": [sys.executable, "-m", "iblip", *arguments],
        "cwd": checkout,
        "env": environment_of(checkout),
    }


def environment_of(checkout: Path) -> dict[str, str]:
    """Variables with which Python imports a checkout's code, wherever this one's is installed."""
    more = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(checkout), more)))}


class ServerProcess:
    """A supervised server on free ports. A context manager; entered, it is ready.

    Args:
        build: the build directory.
        log: what Triton writes.
        arguments: more of `iblip serve`.
        checkout: the code that serves.

    Attributes:
        urls: `grpc` and `http` among them, as `iblip serve --json` tells them.
    """

    def __init__(self, build: Path, log: Path, *arguments: str, checkout: Path = ROOT) -> None:
        ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics", "health")]
        more = [*ports, "--json", "--log", str(log), *arguments]
        self._started = python_of(checkout, "serve", str(build.resolve()), *more)
        self._log = log
        self.urls: dict[str, str] = {}

    def __enter__(self) -> Self:
        with self._log.with_suffix(".supervisor").open("w") as errors:
            self._process: subprocess.Popen[str] = subprocess.Popen(  # type: ignore[call-overload]
                **self._started, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._stop()
            raise RuntimeError(f"iblip serve did not start; see {errors.name}")
        self.urls = json.loads(line)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()

    @property
    def is_running(self) -> bool:
        """Whether the supervisor has not given up."""
        return self._process.poll() is None

    def is_ready(self) -> bool:
        """What a readiness probe is told."""
        try:
            with urllib.request.urlopen(self.urls["health"], timeout=PROBE_S) as response:
                return int(response.status) == 200
        except OSError:  # also an HTTP status that is no success
            return False

    def tree(self) -> list[psutil.Process]:
        """The supervisor, and every process below it."""
        supervisor = psutil.Process(self._process.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def pids(self) -> dict[str, int]:
        """Triton's process, by `TRITON`, and those of its Python models, by model."""
        found: dict[str, int] = {}
        with suppress(psutil.NoSuchProcess):
            for process in self.tree():
                with suppress(psutil.NoSuchProcess):
                    name = TRITON if process.name() == TRITON else model_of(process.pid)
                    if name:
                        found.setdefault(name, process.pid)
        return found

    def usage(self) -> tuple[float, int]:
        """Resident memory in MiB and open descriptors, of the supervisor and all below it."""
        mib, descriptors = 0.0, 0
        for process in self.tree():
            with suppress(psutil.Error):
                mib += process.memory_info().rss / 2**20
                descriptors += process.num_fds()
        return mib, descriptors
