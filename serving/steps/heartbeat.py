"""A Python model's sign of life to the supervisor, and its end when the server has gone.

A process that stands still, or that keeps Python's lock for itself, no longer touches its file.
Triton does not end its Python models when it is killed, so each of them looks after itself.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

DIRECTORY = "IBLIP_HEARTBEATS"
"""Variable that names the folder of heartbeats; without it there is no supervisor."""

PERIOD_S = 0.5
"""Seconds between two beats."""


def start_heartbeat() -> None:
    """Starts the thread, once a process."""
    thread = threading.Thread(target=_beat, args=(os.getppid(),), name="heartbeat", daemon=True)
    thread.start()


def _beat(server: int) -> None:
    directory = os.environ.get(DIRECTORY)
    path = Path(directory, str(os.getpid())) if directory else None
    while os.getppid() == server:
        if path is not None:
            path.touch()
        time.sleep(PERIOD_S)
    os._exit(1)
