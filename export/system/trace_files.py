"""The files of the trace cache, as those who list and prune them see it; no trace is read."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TraceFile:
    """A traced graph in the cache.

    Attributes:
        path: of its file.
        size: in bytes.
        used: when a build last took it, in ISO 8601.
    """

    path: Path
    size: int
    used: str

    @property
    def key(self) -> str:
        """What it is kept under."""
        return self.path.stem

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"key": self.key, "bytes": self.size, "used": self.used}


def list_traces(directory: Path) -> list[TraceFile]:
    """The traces in the cache at `directory`, last used first; none if there is no cache."""
    files = []
    for path in directory.glob("*.trace"):
        stat = path.stat()
        used = datetime.datetime.fromtimestamp(stat.st_mtime, datetime.UTC).isoformat()
        files.append(TraceFile(path=path, size=stat.st_size, used=used))
    return sorted(files, key=lambda file: file.used, reverse=True)
