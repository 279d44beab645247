"""Keeps a build served: notices a server that has died or hangs, and starts it again.

`Supervisor.run` ends by an error, with Ctrl-C or once the server has failed to stay ready too many
times in a row, when an orchestrator or a person has to look; or because another thread has called
`Supervisor.stop`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from iblip.export.errors import OptionError, ServingError
from iblip.serving.server.canary import Canary
from iblip.serving.server.children import WALL
from iblip.serving.server.health import Health
from iblip.serving.server.log import why
from iblip.serving.server.options import ServerOptions
from iblip.serving.server.question import canary_question
from iblip.serving.server.server import Progress as Tell
from iblip.serving.server.server import TritonServer
from iblip.serving.server.vitals import Fault, Progress, Vitals, read_metrics

logger = logging.getLogger(__name__)

WATCH_S = 0.5
"""Seconds between two looks at the server's processes."""

METRICS_S = 5.0
"""Seconds that the server may take to tell its metrics."""

DRAIN_S = 3.0
"""Seconds in which answers that are being written may still end before a restart."""

DRAINABLE = frozenset({"vision_encoder", "qformer", "instructblip_unary", WALL})
"""Models without whose process the answers that are being written can still be finished."""


@dataclass(frozen=True, kw_only=True)
class RestartPolicy:
    """When a server is started again.

    Attributes:
        limit: restarts in a row, each after less than `stable_s` of being ready; 0 restarts never.
        first_s, longest_s: wait before the second restart in a row, which doubles with each more;
            the first is at once.
        stable_s: seconds of being ready after which the count begins anew.
    """

    limit: int = 5
    first_s: float = 1.0
    longest_s: float = 30.0
    stable_s: float = 60.0

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise OptionError(f"the limit of restarts is {self.limit}; expected 0 (none) or more")

    def wait_s(self, failures: int) -> float:
        """Seconds before the restart after so many failures in a row, 1 or more."""
        return 0.0 if failures == 1 else min(self.longest_s, self.first_s * 2.0 ** (failures - 2))


class Supervisor:
    """Serves one model repository, whatever happens to its processes.

    Args:
        repository: the folder of models.
        options: see `ServerOptions`. A restarted server has the ports of the first.
        policy: when it is started again.
        health: what probes are told; kept up to date.
        progress: told in one line of what has happened.
    """

    def __init__(
        self,
        repository: Path,
        options: ServerOptions,
        *,
        policy: RestartPolicy,
        health: Health,
        progress: Tell,
    ) -> None:
        self._repository, self._options = repository, options
        self._policy, self._health, self._progress = policy, health, progress
        self._left = threading.Event()

    def stop(self) -> None:
        """Has `run` end its server and return, whatever it does. For any thread; does not wait."""
        self._left.set()

    def run(self, on_ready: Callable[[TritonServer], None]) -> None:
        """Serves until it is interrupted or stopped.

        Args:
            on_ready: called each time that the server has become ready.

        Raises:
            ServingError: the first start failed, or the server did not stay ready.
        """
        failures = 0
        while not self._left.is_set():
            ready_at = None
            try:
                with TritonServer(
                    self._repository, self._options, progress=self._progress, leave=self._left
                ) as server:
                    ready_at = time.monotonic()
                    # Before anybody hears that it is ready: what dies then must be known.
                    vitals = Vitals(server.pid, server.heartbeats)
                    self._options = server.options_with_ports()
                    self._health.state, self._health.has_started = "ready", True
                    on_ready(server)
                    fault = self._watch(server, vitals)
                    if fault is None:
                        return
                    self._note(fault.reason)
                    server.stop(DRAIN_S if fault.model in DRAINABLE else 0)
            except ServingError as error:
                if self._left.is_set():
                    return
                if not self._health.has_started:
                    raise
                fault = Fault(model="", reason=str(error))
                self._note(fault.reason)
            stable = ready_at is not None and time.monotonic() - ready_at > self._policy.stable_s
            failures = 1 if stable else failures + 1
            if failures > self._policy.limit:
                self._health.state = "failed"
                raise ServingError(self._last_words(failures, fault))
            wait_s = self._policy.wait_s(failures)
            when = f"in {wait_s:g} s" if wait_s else "now"
            self._progress(f"Starting the server again {when}.")
            self._left.wait(wait_s)
            self._health.restarts += 1

    def _note(self, reason: str) -> None:
        logger.error("%s", reason)
        self._health.state, self._health.reason = "restarting", reason

    def _watch(self, server: TritonServer, vitals: Vitals) -> Fault | None:
        """What is wrong with the server; `None` once this is stopped."""

        def progress() -> Progress:
            return vitals.progress(read_metrics(server.metrics_url, METRICS_S))

        with Canary(canary_question(server), progress) as canary:
            while not self._left.wait(WATCH_S):
                fault = vitals.fault() or canary.fault
                if not vitals.is_triton_running:  # asked last: its models end with it
                    status, log = server.wait(), why(server.log())
                    return Fault(model="", reason=f"Triton ended with status {status}:\n{log}")
                if fault is not None:
                    return fault
        return None

    def _last_words(self, failures: int, fault: Fault) -> str:
        if not self._policy.limit:
            return f"{fault.reason}\nThe server was not started again, as --no-restart asks."
        return (
            f"{fault.reason}\nThe server failed to stay ready {failures} times in a row, and is "
            "not started again. Its log (--log FILE) says more."
        )
