"""`keeper.py SCRATCH STOP_S COMMAND…` runs the server, and leaves nothing of it behind.

Run as a script of its own, between the process that wants a server and Triton. Its standard input
is a pipe that its parent holds open and never writes to. Once the pipe is closed, because the
parent closed it or was killed, Triton is told to stop, given `STOP_S` seconds for the requests that
are running, and killed together with its Python models. What they leave in /dev/shm is removed, and
so is the scratch folder. If Triton ends by itself, this process ends in the same way, and leaves
the scratch folder to the parent. SIGTERM ends everything at once.

It writes one line to its standard output: Triton's process id. Triton's log goes to its standard
error.
"""

import contextlib
import ctypes
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>

GONE_S = 3.0
"""Seconds that killed processes get to end; until then they hold their shared memory."""

Server = subprocess.Popen[bytes]


def main() -> None:
    """Starts the command, waits for its end or for the parent's, and cleans up."""
    scratch, stop_s, command = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    # `preexec_fn` is safe here and not in the parent: gRPC's threads do not survive a fork that
    # runs Python, and this process has no threads.
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,
        preexec_fn=lambda: ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM),
    )
    signal.signal(signal.SIGTERM, lambda *_: _kill(server))
    print(server.pid, flush=True)
    ended, _, _ = select.select([sys.stdin, os.pidfd_open(server.pid)], [], [])
    is_parent_done = sys.stdin in ended
    if is_parent_done:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(stop_s)
    _kill(server)
    for path in Path("/dev/shm").glob(f"{scratch.name}*"):
        path.unlink(missing_ok=True)
    if is_parent_done:
        shutil.rmtree(scratch, ignore_errors=True)
    _end_like(server.wait())


def _kill(server: Server) -> None:
    """Kills what is left of the server's process group, and waits until it has gone."""
    end = time.monotonic() + GONE_S
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
        while time.monotonic() < end:
            server.poll()
            os.killpg(server.pid, 0)
            time.sleep(0.01)


def _end_like(status: int) -> None:
    """Exits with Triton's status, by the same signal if one ended it."""
    if status < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):  # SIGKILL has no other
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main()
