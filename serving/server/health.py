"""The health of a supervised server over HTTP: is it alive, is it ready, has it started.

Triton's own `/v2/health/ready` stays true after a model's process has died, so probes ask here.

    GET /health/live      200 while the supervisor runs and has not given up
    GET /health/ready     200 only while a request would be answered
    GET /health/startup   200 once the server has been ready for the first time
    GET /metrics          the same for Prometheus, also while there is no server

Any other answer is 503. The body of a probe's is JSON: `state`, `reason`, `restarts`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self

from iblip.serving.metrics import TEXT, Family, text_from_status
from iblip.serving.server.address import ListenAddress

State = Literal["starting", "ready", "restarting", "failed"]


@dataclass
class Health:
    """What the supervisor knows. It alone writes.

    Attributes:
        state: of the server.
        reason: of the last restart or failure; empty before any.
        restarts: how many there were.
        has_started: whether it has been ready before.
    """

    state: State = "starting"
    reason: str = ""
    restarts: int = 0
    has_started: bool = False

    def answers(self, path: str) -> bool | None:
        """The answer to a probe; `None` if there is no such path."""
        return {
            "/health/live": self.state != "failed",
            "/health/ready": self.state == "ready",
            "/health/startup": self.has_started,
        }.get(path)


SUPERVISOR: Mapping[str, Family[Health]] = {
    "iblip_server_ready": Family(
        kind="gauge",
        help="Whether a request would be answered",
        read=lambda h: int(h.state == "ready"),
    ),
    "iblip_server_started": Family(
        kind="gauge",
        help="Whether the server has been ready before",
        read=lambda h: int(h.has_started),
    ),
    "iblip_server_restarts_total": Family(
        kind="counter",
        help="Restarts of Triton by its supervisor",
        read=lambda h: h.restarts,
    ),
}
"""The metrics of the supervisor, by name."""


class HealthServer:
    """Answers probes and Prometheus until it is left. A context manager.

    Args:
        health: read at every request.
        host, port: to listen on; port 0 takes a free one.

    Raises:
        OSError: the port cannot be used.
        ServingError: there is no such host.
    """

    def __init__(self, health: Health, host: str, port: int) -> None:
        handler = type("Handler", (_Handler,), {"health": health})
        address = ListenAddress.resolve(host)
        kind = type("Server", (ThreadingHTTPServer,), {"address_family": address.family})
        self._server = kind((address.number, port), handler)
        self._server.daemon_threads = True

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    health: Health
    timeout = 5.0  # seconds that a probe may take to ask
    server_version, sys_version = "iblip", ""

    def do_GET(self) -> None:
        """Answers a probe, or Prometheus."""
        if self.path == "/metrics":
            self._send(HTTPStatus.OK, TEXT, text_from_status(SUPERVISOR, self.health))
            return
        answer = self.health.answers(self.path)
        status = {
            None: HTTPStatus.NOT_FOUND,
            True: HTTPStatus.OK,
            False: HTTPStatus.SERVICE_UNAVAILABLE,
        }[answer]
        keys = ("state", "reason", "restarts")
        body = json.dumps({key: getattr(self.health, key) for key in keys})
        self._send(status, "application/json", body)

    def log_message(self, *_: Any) -> None:
        """Logs nothing: probes are frequent."""

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
