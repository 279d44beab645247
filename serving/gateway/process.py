"""The gateway in a process of its own, beside a server: started with it, again where it ends."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from iblip.serving.gateway.listening import DRAIN_S, listening, url_of

FIRST_S, LONGEST_S = 0.5, 30.0
"""Pause before a second restart in a row, which doubles with each more."""

STABLE_S = 60.0
"""Seconds of running after which restarts are counted from the start."""

WATCH_S = 0.2


class GatewayProcess:
    """Listens at once, and answers from `start` on. A context manager: leaving ends the process.

    The process ends with this one, however this one ends: it reads a pipe of it.

    Args:
        host, port: to listen on; port 0 takes a free one.
        tell: told in one line where the process is started again.

    Attributes:
        pid: of the process; `None` while there is none.

    Raises:
        ServingError: the port cannot be used.
    """

    def __init__(self, host: str, port: int, tell: Callable[[str], object]) -> None:
        self._socket = listening(host, port)
        self._tell = tell
        self._left = threading.Event()
        self._thread: threading.Thread | None = None
        self.pid: int | None = None

    @property
    def url(self) -> str:
        """`http://host:port`."""
        return url_of(self._socket)

    def start(self, arguments: Sequence[str]) -> None:
        """Starts the process; does nothing the second time.

        Args:
            arguments: of `iblip gateway`, but for where it listens.
        """
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, args=(tuple(arguments),), name="gateway", daemon=True
            )
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._left.set()
        if self._thread is not None:
            self._thread.join()
        self._socket.close()

    def _run(self, arguments: tuple[str, ...]) -> None:
        failures = 0
        while True:
            started = time.monotonic()
            status = self._once(arguments)
            if status is None:
                return
            failures = 1 if time.monotonic() - started > STABLE_S else failures + 1
            pause_s = 0.0 if failures == 1 else min(LONGEST_S, FIRST_S * 2.0 ** (failures - 2))
            when = f"in {pause_s:g} s" if pause_s else "now"
            self._tell(f"The gateway ended with status {status}. Starting it again {when}.")
            if self._left.wait(pause_s):
                return

    def _once(self, arguments: tuple[str, ...]) -> int | None:
        """Runs the process once; its status where it ended by itself."""
        number = self._socket.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", "iblip", "gateway", *arguments, f"--socket={number}"],
            stdin=subprocess.PIPE,
            pass_fds=(number,),
            start_new_session=True,  # Ctrl-C is for this process alone
        )
        self.pid = process.pid
        assert process.stdin is not None
        try:
            while not self._left.is_set():
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(WATCH_S)
            process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(DRAIN_S + 1)
            return None
        finally:
            self.pid = None
            process.kill()
            process.wait()
