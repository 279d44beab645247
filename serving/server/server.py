"""A Triton server as a context manager: start it on a repository, wait until ready, stop it.

    with TritonServer(build / "model_repository") as server:
        print(server.grpc_url)

The server runs in a process group of its own, so that nothing of it is left behind: not when a
model hangs on the way down, and (on Linux) not when this process is killed.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from iblip.export.errors import ServingError
from iblip.serving.server.address import ListenAddress
from iblip.serving.server.children import ModelProcesses
from iblip.serving.server.command import SCRATCH, scratch_parent, server_command
from iblip.serving.server.log import last_words, ready_models, why
from iblip.serving.server.options import ServerOptions

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]
"""Told, in one line, what has just become true."""

READY_POLL_S = 0.05

LAUNCH = Path(__file__).with_name("launch.py")


class _CrashedError(ServingError):
    """The server was ended by a signal, not by a decision of its own."""


class TritonServer:
    """Serves one model repository. Entering returns once every model is ready.

    Args:
        repository: the folder of models.
        options: see `ServerOptions`.
        progress: told of each model that is loaded.

    Raises (on entering):
        ServingError: there is no Triton, a port is taken, or a model did not load; the message
            has the reason from the log.
    """

    def __init__(
        self,
        repository: Path,
        options: ServerOptions | None = None,
        *,
        progress: Progress = logger.info,
    ) -> None:
        self.repository = repository.absolute()
        self.options = options or ServerOptions()
        self._progress = progress
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._ports: dict[str, int] = {}
        self._stopping = threading.Lock()

    @property
    def http_url(self) -> str:
        """`http://host:port`."""
        return f"http://{self._reachable}:{self._ports['http']}"

    @property
    def grpc_url(self) -> str:
        """`host:port`, what the clients take."""
        return f"{self._reachable}:{self._ports['grpc']}"

    @property
    def metrics_url(self) -> str:
        """Prometheus' text, over HTTP."""
        return f"http://{self._reachable}:{self._ports['metrics']}/metrics"

    @property
    def pid(self) -> int:
        """Of the server's process, which leads its process group."""
        assert self._process is not None, "the server has not been started"
        return self._process.pid

    @property
    def log_path(self) -> Path:
        """The server's log."""
        if self.options.log is not None:
            return self.options.log.absolute()
        return self._scratch_path / "triton.log"

    def __enter__(self) -> Self:
        try:
            self._begin()
        except _CrashedError as crash:
            # Python models that start on a machine with no time for them can bring Triton down;
            # nothing is wrong with them, and a second start has always worked.
            self._progress(f"{crash} Starting it again.")
            self._begin()
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
        assert self._process is not None, "the server has not been started"
        return self._process.wait()

    def stop(self) -> None:
        """Ends the server: asks, waits `stop_timeout_s`, kills. Called twice it does nothing."""
        with self._stopping:
            if self._process is not None:
                _end_group(self._process, self.options.stop_timeout_s)
            if self._scratch is not None:
                _remove_shared_memory(self._scratch_path.name)
                self._scratch.cleanup()
                self._scratch = None

    @property
    def _scratch_path(self) -> Path:
        assert self._scratch is not None, "the server has not been started"
        return Path(self._scratch.name)

    @cached_property
    def _reachable(self) -> str:
        return ListenAddress.resolve(self.options.host).reachable

    def _start(self) -> None:
        self._ports = choose_ports(self.options)
        command = server_command(self.repository, self.options, self._ports, self._scratch_path)
        logger.debug("starting %s", command)
        launch = (sys.executable, "-I", "-S", str(LAUNCH), str(os.getpid()))
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [*launch, *command.arguments, self._shared_memory()],
                env=command.environment,
                cwd=command.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _shared_memory(self) -> str:
        # A name by which to find what a killed server leaves in /dev/shm. Its own number is not
        # known before it starts: the scratch folder's name is as unique.
        name = f"{self._scratch_path.name}_"
        return f"--backend-config=python,shm-region-prefix-name={name}"

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        end = time.monotonic() + self.options.ready_timeout_s
        told = 0
        models = ModelProcesses(self._process.pid)
        while not self._is_ready():
            log = self.log_path.read_text(encoding="utf-8", errors="replace")
            status = self._process.poll()
            if status is not None:
                kind = _CrashedError if status < 0 else ServingError
                raise kind(f"Triton did not start.\n{why(log)}")
            lost = models.lost()
            if lost is not None:
                name = lost or "a model"
                raise ServingError(
                    f"Triton did not start: the process of {name} ended before it had loaded, "
                    f"and Triton would wait for it.\n{last_words(log)}"
                )
            if time.monotonic() > end:
                waited = f"{self.options.ready_timeout_s:g} seconds"
                raise ServingError(f"Triton was not ready after {waited}.\n{why(log)}")
            told = self._tell(log, told)
            time.sleep(READY_POLL_S)
        self._tell(self.log_path.read_text(encoding="utf-8", errors="replace"), told)

    def _is_ready(self) -> bool:
        # The metrics come up last, after the models are said to be ready.
        host, ports = self._reachable, self._ports
        return _answers(host, ports["http"], "/v2/health/ready") and _answers(
            host, ports["metrics"], "/metrics"
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
    address = ListenAddress.resolve(options.host)
    ports = {}
    sockets = []
    try:
        for name, port in wanted.items():
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


def _end_group(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    try:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        logger.warning("Triton did not stop in %g seconds; killing it", timeout_s)
    finally:  # also where a second Ctrl-C ends the wait
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # Python models that outlived it, too
        process.wait()
        _wait_until_gone(process.pid)


def _wait_until_gone(group: int, timeout_s: float = 3.0) -> None:
    """What was killed takes a moment to go, and holds its shared memory until then."""
    end = time.monotonic() + timeout_s
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(group, 0)
            time.sleep(0.01)


def _remove_shared_memory(name: str) -> None:
    """A killed server leaves its Python models' shared memory behind."""
    for path in Path("/dev/shm").glob(f"{name}*"):
        path.unlink(missing_ok=True)
