"""The process that vLLM runs in, seen from this end of the pipe.

`worker.py` is the other end and documents the messages. This module knows nothing of requests.
"""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from iblip.engines.language_model.vllm.worker import read_message, write_message

Message = Mapping[str, Any]

WORKER = Path(__file__).with_name("worker.py")

STOP_S = 12.0
"""How long the process may take to end by itself, in seconds, before it is killed. Its own limit is
lower, so this only concerns a process that is stuck."""

ASK_S = 10.0
"""How long the rest of the group may take to end after SIGTERM, in seconds. vLLM's own processes
take five."""

LAST_LINES = 15
"""How many of the log's last lines `epitaph` repeats."""


class WorkerProcess:
    """One process, started at once. It leads a process group, so that all of it can be ended.

    Args:
        command: the interpreter and the script, or a replacement for them.
        environment: all environment variables of the process.
        arguments: of vLLM's engine.
        receive: called with each message on a thread of its own, and last with `None`, once the
            process and all that it started have ended.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        arguments: Mapping[str, Any],
        receive: Callable[[WorkerProcess, Message | None], None],
    ) -> None:
        self._receive = receive
        self._lock = threading.Lock()
        self._lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        # Holds vLLM's sockets, whose files a killed process leaves behind.
        self._scratch = tempfile.TemporaryDirectory(prefix="iblip-vllm-")
        self._process = subprocess.Popen(
            command,
            env={**environment, "VLLM_RPC_BASE_PATH": self._scratch.name},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )
        self._log = threading.Thread(target=self._follow_log, name="vllm-log", daemon=True)
        self._watch = threading.Thread(target=self._end_with_process, name="vllm-end", daemon=True)
        self._reader = threading.Thread(target=self._read, name="vllm-messages", daemon=True)
        for thread in (self._log, self._watch, self._reader):
            thread.start()
        self.send({"kind": "open", "engine": dict(arguments)})

    @property
    def pid(self) -> int:
        """Id of the process and of its group."""
        return self._process.pid

    def send(self, header: Message, body: bytes = b"") -> None:
        """Sends one message. It is lost if the process has ended; `receive` is then called."""
        assert self._process.stdin is not None
        # `ValueError`: the pipe was closed on this side.
        with self._lock, contextlib.suppress(OSError, ValueError):
            write_message(self._process.stdin, header, body)

    def stop(self) -> None:
        """Ends the process and returns once its whole group has ended. May be called repeatedly."""
        assert self._process.stdin is not None
        with self._lock, contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        self._kill()
        self._reader.join()

    def epitaph(self) -> str:
        """How it ended, in a few lines."""
        status = self._process.poll()
        how = "is running"
        if status is not None:
            how = f"signal {-status}" if status < 0 else f"exit status {status}"
        last = "\n  ".join(self._lines)
        return f"{how}; the last lines of its log:\n  {last}" if last else how

    def _read(self) -> None:
        assert self._process.stdout is not None
        while (message := read_message(self._process.stdout)) is not None:
            self._receive(self, message[0])
        self._watch.join(STOP_S + ASK_S)  # one that is stuck on its way out is killed
        self._kill()
        self._log.join(timeout=1.0)  # a process that left the group may hold the log open
        self._scratch.cleanup()
        self._receive(self, None)

    def _follow_log(self) -> None:
        """Passes the log on, and keeps its end."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            text = line.decode(errors="replace")
            self._lines.append(text.rstrip())
            sys.stderr.write(text)
            sys.stderr.flush()

    def _end_with_process(self) -> None:
        """Ends the group once the process has ended, so that its pipes have no writer left."""
        self._process.wait()
        self._kill()

    def _kill(self) -> None:
        """Ends the group, by SIGTERM first: vLLM's processes then free their shared memory."""
        end = time.monotonic() + ASK_S
        signals = [signal.SIGTERM]
        while self._signal(signals.pop() if signals else 0) and time.monotonic() < end:
            time.sleep(0.02)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> bool:
        """Sends a signal to the group (0 sends none); returns whether the group still exists."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return False
        return True
