"""The processes of a server, as /proc shows them."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from iblip.serving.server.children import WALL

LIMIT_S = 60


def group(pid: int) -> list[int]:
    """The processes of a process group that still run."""
    running = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, leader = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(leader) == pid and state != "Z":
            running.append(int(path.parent.name))
    return running


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found: list[str] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended: another has its children
            found += path.read_text().split()
    return [int(child) for child in found]


def models_of(triton: int) -> dict[str, int]:
    """The processes of Triton's Python models, by model; one of each. The wall's is among them."""
    models = {}
    for child in children(triton):
        words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        path = Path(words[1])
        models[WALL if path.name == "launch.py" else path.parents[1].name] = child
    return models


def wait_until_gone(pid: int) -> None:
    """Waits until nothing of a process group is left."""
    end = time.monotonic() + LIMIT_S
    while group(pid):
        assert time.monotonic() < end, f"still running: {group(pid)}"
        time.sleep(0.05)
