"""A Triton server as a context manager: start it on a repository, wait until ready, stop it.

    with TritonServer(build / "model_repository") as server:
        print(server.grpc_url)

The server runs below a process of ours (`keeper.py`), so that nothing of it is left behind: not if
a model hangs on the way down, and not if this process is killed.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from iblip.export.errors import ServingError
from iblip.export.system.paths import PathLike, path_from
from iblip.serving.server.access import address_of
from iblip.serving.server.children import ModelProcesses
from iblip.serving.server.command import SCRATCH, scratch_parent, server_command
from iblip.serving.server.log import last_words, ready_models, why
from iblip.serving.server.options import ServerOptions
from iblip.serving.steps.heartbeat import DIRECTORY

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]
"""Told, in one line, what has just become true."""

READY_POLL_S = 0.05

LOG_PERIOD_S = 0.2
LOG_BYTES = 1 << 22
"""Size at which a log that nobody asked for begins anew."""

KEEPER = Path(__file__).with_name("keeper.py")


class _CrashedError(ServingError):
    """The server was ended by a signal, not by a decision of its own."""


class TritonServer:
    """Serves one model repository. Entering returns once every model is ready.

    Args:
        repository: the folder of models.
        options: see `ServerOptions`.
        progress: told of each model that is loaded.
        leave: once another thread sets it, a start that is under way is given up.

    Attributes:
        ready_s: seconds from the start until every model was ready.

    Raises (on entering):
        ServingError: there is no Triton, a port is taken, or a model did not load; the message
            has the reason from the log.
    """

    def __init__(
        self,
        repository: PathLike,
        options: ServerOptions | None = None,
        *,
        progress: Progress = logger.info,
        leave: threading.Event | None = None,
    ) -> None:
        self.repository = path_from(repository, "repository").absolute()
        self.options = options or ServerOptions()
        self._progress = progress
        self._leave = leave or threading.Event()
        self._keeper: subprocess.Popen[bytes] | None = None
        self._pid = self._log_start = 0
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._ports: dict[str, int] = {}
        self._hosts: dict[str, str] = {}
        self._stopping = threading.Lock()
        self.ready_s = 0.0

    @property
    def http_url(self) -> str:
        """`http://host:port`."""
        return f"http://{self._hosts['http']}:{self._ports['http']}"

    @property
    def grpc_url(self) -> str:
        """`host:port`, what the clients take."""
        return f"{self._hosts['grpc']}:{self._ports['grpc']}"

    @property
    def metrics_url(self) -> str:
        """Prometheus' text, over HTTP."""
        return f"http://{self._hosts['metrics']}:{self._ports['metrics']}/metrics"

    def options_with_ports(self) -> ServerOptions:
        """Its options, with the ports that it listens on."""
        http, grpc, metrics = (self._ports[name] for name in ("http", "grpc", "metrics"))
        return replace(self.options, http_port=http, grpc_port=grpc, metrics_port=metrics)

    @property
    def heartbeats(self) -> Path:
        """The folder where each Python model shows that it is alive."""
        return self._scratch_path / "heartbeats"

    @property
    def pid(self) -> int:
        """Of the server's process, which leads its process group."""
        assert self._keeper is not None, "the server has not been started"
        return self._pid

    @property
    def log_path(self) -> Path:
        """The server's log, to which every start appends."""
        if self.options.log is not None:
            return self.options.log.absolute()
        return self._scratch_path / "triton.log"

    def log(self) -> str:
        """What the server has logged since it was started."""
        with self.log_path.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode("utf-8", errors="replace")

    def __enter__(self) -> Self:
        started = time.monotonic()
        try:
            self._begin()
        except _CrashedError as crash:
            # Python models that start on a machine with no time for them can bring Triton down;
            # nothing is wrong with them, and a second start has always worked.
            self._progress(f"{crash} Starting it again.")
            self._begin()
        self.ready_s = time.monotonic() - started
        return self

    def _begin(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix=SCRATCH, dir=scratch_parent())
        try:
            self._start()
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def wait(self) -> int:
        """Waits until the server ends by itself, and returns its exit status."""
        assert self._keeper is not None, "the server has not been started"
        return self._keeper.wait()

    def stop(self, timeout_s: float | None = None) -> None:
        """Ends the server: asks, waits, kills. Called twice it does nothing.

        Args:
            timeout_s: how long running requests may take to end; `None` is `stop_timeout_s`.
        """
        with self._stopping:
            if self._keeper is not None:
                _end(self._keeper, timeout_s)
            if self._scratch is not None:
                self._scratch.cleanup()
                self._scratch = None

    @property
    def _scratch_path(self) -> Path:
        assert self._scratch is not None, "the server has not been started"
        return Path(self._scratch.name)

    def _start(self) -> None:
        self._ports = choose_ports(self.options)
        self._hosts = {name: address_of(name, self.options).reachable for name in self._ports}
        command = server_command(self.repository, self.options, self._ports, self._scratch_path)
        logger.debug("starting %s", command)
        keeper = (sys.executable, "-I", "-S", KEEPER, command.directory)
        self.heartbeats.mkdir()
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            self._keeper = subprocess.Popen(
                [
                    *keeper,
                    str(self.options.stop_timeout_s),
                    *command.arguments,
                    self._shared_memory(),
                ],
                env={**command.environment, DIRECTORY: str(self.heartbeats)},
                cwd=command.directory,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for this process alone
            )
        assert self._keeper.stdout is not None
        self._pid = int(self._keeper.stdout.readline() or 0)  # none where it could not be started
        if self.options.log is None:
            arguments = (self.log_path, self._keeper)
            threading.Thread(target=self._drain_log, args=arguments, daemon=True).start()

    def _drain_log(self, path: Path, keeper: subprocess.Popen[bytes]) -> None:
        """Copies the log to standard error if that was asked for, and keeps the file small."""
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:  # it was stopped
            is_running = True
            while is_running or file.tell() < path.stat().st_size:
                is_running = keeper.poll() is None
                text = file.read()
                if self.options.echo_log:
                    sys.stderr.buffer.write(text)
                    sys.stderr.flush()
                if file.tell() > LOG_BYTES:
                    os.truncate(path, 0)
                    file.seek(0)
                time.sleep(LOG_PERIOD_S)

    def _shared_memory(self) -> str:
        # A name by which to find what a killed server leaves in /dev/shm. Its own number is not
        # known before it starts: the scratch folder's name is as unique.
        name = f"{self._scratch_path.name}_"
        return f"--backend-config=python,shm-region-prefix-name={name}"

    def _wait_until_ready(self) -> None:
        assert self._keeper is not None
        end = time.monotonic() + self.options.ready_timeout_s
        told = 0
        models = ModelProcesses(self._pid)
        while not self._is_ready():
            log = self.log()
            status = self._keeper.poll()
            if status is not None:
                kind = _CrashedError if status < 0 else ServingError
                raise kind(f"Triton did not start.\n{why(log)}")
            lost = models.lost(log)
            if lost is not None:
                raise ServingError(
                    f"Triton did not start: the process of {lost} ended before it had loaded, "
                    f"and Triton would wait for it.\n{last_words(log)}"
                )
            if time.monotonic() > end:
                waited = f"{self.options.ready_timeout_s:g} seconds"
                raise ServingError(f"Triton was not ready after {waited}.\n{why(log)}")
            told = self._tell(log, told)
            if self._leave.wait(READY_POLL_S):
                raise ServingError("Triton was stopped before it was ready.")
        self._tell(self.log(), told)

    def _is_ready(self) -> bool:
        # The metrics come up last, after the models are said to be ready.
        paths = {"http": "/v2/health/ready", "metrics": "/metrics"}
        return all(
            _answers(self._hosts[service], self._ports[service], path)
            for service, path in paths.items()
        )

    def _tell(self, log: str, told: int) -> int:
        models = ready_models(log)
        for model in models[told:]:
            self._progress(f"{model} is loaded")
        return len(models)


def choose_ports(options: ServerOptions) -> dict[str, int]:
    """The port of each service; free ones are found by binding to them all at once.

    Raises:
        ServingError: one that was asked for cannot be used.
    """
    wanted = {
        "http": options.http_port,
        "grpc": options.grpc_port,
        "metrics": options.metrics_port,
    }
    ports = {}
    sockets = []
    try:
        for name, port in wanted.items():
            address = address_of(name, options)
            one = socket.socket(address.family)
            sockets.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind((address.number, port))
            except OSError as error:
                message = (
                    f"port {port} ({name}) of {options.host} cannot be used: {error.strerror}."
                )
                hint = f"Give another with --{name}-port, or 0 for any free one."
                if error.errno == errno.EADDRNOTAVAIL:
                    hint = "Give --host an address of this machine."
                raise ServingError(f"{message} {hint}") from error
            ports[name] = one.getsockname()[1]
    finally:
        for one in sockets:
            one.close()
    return ports


def _answers(host: str, port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(host.strip("[]"), port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _end(keeper: subprocess.Popen[bytes], timeout_s: float | None) -> None:
    """Closes the pipe, which stops Triton, and waits. A second Ctrl-C kills what is left."""
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    try:
        keeper.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            keeper.wait(timeout_s)
    finally:
        keeper.terminate()
        keeper.wait()
        keeper.stdout.close()
