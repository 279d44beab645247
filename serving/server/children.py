"""The processes that Triton has started for its Python models, as Linux's `/proc` shows them.

Triton starts a process for each Python model, and does not ask after it before it has loaded; one
that has ended stays a zombie. Reads Linux's `/proc`, and sees nothing elsewhere.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from iblip.serving.server.log import loading_models

GRACE_S = 3.0
"""Seconds that Triton has to notice by itself, and to say why."""


class ModelProcesses:
    """Notices models whose process ends while they load: Triton 2.51 waits for some for ever.

    Args:
        pid: of the server.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._names: dict[int, str] = {}
        self._ended: dict[int, float] = {}

    def lost(self, log: str) -> str | None:
        """The model whose process ended unnoticed, or those of which it is one.

        Args:
            log: what the server has logged. A process may end before anybody has seen its name:
                then it is of a model that is neither loaded nor has another process.
        """
        ended = {}
        running = set()
        for child in children_of(self._pid):
            if is_zombie(child):
                ended[child] = self._ended.get(child, time.monotonic())
            elif name := model_of(child):
                self._names[child] = name
                running.add(name)
        self._ended = ended
        late = [one for one, since in ended.items() if time.monotonic() - since > GRACE_S]
        if not late:
            return None
        missing = [name for name in loading_models(log) if name not in running]
        return self._names.get(late[0]) or " or ".join(missing) or "a model"


WALL = "the wall"
"""What the process before Triton's HTTP server goes by (`serving.server.wall`)."""


def children_of(pid: int) -> set[int]:
    """The processes that a process has started."""
    children: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            children.update(map(int, path.read_text().split()))
    return children


def is_zombie(pid: int) -> bool:
    """Whether a process has ended without its parent having taken notice."""
    return _state_and_parent(pid)[0] == "Z"


def is_running_child(pid: int, parent: int) -> bool:
    """Whether a process that `parent` has started still runs; cheaper than `children_of`."""
    state, found = _state_and_parent(pid)
    return found == str(parent) and state != "Z"


def _state_and_parent(pid: int) -> tuple[str, str]:
    """The letter of a process' state, and its parent's number; empty where there is none."""
    with contextlib.suppress(OSError):
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
        return state, parent
    return "", ""


def model_of(pid: int) -> str:
    """The model that a process runs: it is given the path of `MODEL/VERSION/model.py`."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        paths = [Path(word) for word in words if word.endswith(".py")]
        if paths and paths[0].parts[-2:] == ("wall", "launch.py"):
            return WALL
        return paths[0].parts[-3] if paths and len(paths[0].parts) > 2 else ""
    return ""
