"""The process that vLLM runs in, from this end of the pipe.

`worker.py` is the other end, and says what messages there are. Knows nothing of requests.
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
"""How long the process may take to end by itself, in seconds, before it is killed. It gives itself
less, so this is for one that is stuck."""

ASK_S = 10.0
"""How long what a dead process leaves behind may take to end by itself, in seconds. vLLM's own
processes take five."""

LAST_LINES = 15
"""How much of what it wrote is told where it ended by itself."""


class WorkerProcess:
    """One process, started at once. It leads a process group, so that nothing of it stays behind.

    Args:
        command: the interpreter and the script, or what stands for them.
        environment: variables of the process, all of them.
        arguments: of vLLM's engine.
        receive: given each message, on a thread of its own; `None` last, once the process and all
            that it started have ended.
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
        # vLLM's sockets, of which a killed process leaves the files behind.
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
        self._watch = threading.Thread(target=self._bury, name="vllm-end", daemon=True)
        self._reader = threading.Thread(target=self._read, name="vllm-messages", daemon=True)
        for thread in (self._log, self._watch, self._reader):
            thread.start()
        self.send({"kind": "open", "engine": dict(arguments)})

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""
        return self._process.pid

    def send(self, header: Message, body: bytes = b"") -> None:
        """Sends one message; to a process that has ended, in vain: `receive` is told of that."""
        assert self._process.stdin is not None
        # `ValueError`: the pipe was closed on this side.
        with self._lock, contextlib.suppress(OSError, ValueError):
            write_message(self._process.stdin, header, body)

    def stop(self) -> None:
        """Ends the process, and returns once all of it has ended. Harmless when repeated."""
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
        return f"{how}; the last that it wrote:\n  {last}" if last else how

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

    def _bury(self) -> None:
        """What the process started goes with it, and with that the last writer of its pipes."""
        self._process.wait()
        self._kill()

    def _kill(self) -> None:
        """Ends the group. Asked first, vLLM's processes free the memory that they share."""
        end = time.monotonic() + ASK_S
        signals = [signal.SIGTERM]
        while self._signal(signals.pop() if signals else 0) and time.monotonic() < end:
            time.sleep(0.02)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> bool:
        """Sends a signal to the group, 0 being none; whether there is still any of it."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return False
        return True
