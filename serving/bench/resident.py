"""What a server's processes take of the machine's memory, as Linux's `/proc` counts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def resident(leader: int) -> dict[str, Any]:
    """Bytes in memory of every process of a session, by the system's own count.

    Args:
        leader: the server's process id, which is its session's.

    Returns:
        `rss`, in which shared pages count for each process; `pss`, in which they count once; the
        part of `pss` that is no file; and `rss` by process.
    """
    totals = {"rss": 0, "pss": 0, "pss_anonymous": 0}
    by_process: dict[str, int] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state = (process / "stat").read_text().rpartition(")")[2].split()
            if int(state[3]) != leader:
                continue
            lines = (process / "smaps_rollup").read_text().splitlines()[1:]
            words = (process / "cmdline").read_text().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        sizes = {line.split()[0]: int(line.split()[1]) * 1024 for line in lines}
        for name, key in zip(totals, ("Rss:", "Pss:", "Pss_Anon:"), strict=True):
            totals[name] += sizes[key]
        models = [word.split("/")[-3] for word in words if word.endswith("/1/model.py")]
        name = models[0] if models else Path(words[0]).name
        by_process[name] = by_process.get(name, 0) + sizes["Rss:"]
    return {**totals, "rss_by_process": by_process}
