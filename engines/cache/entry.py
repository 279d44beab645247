"""One plan of the engine cache, and its record.

CACHE/plans/<key>/
├── plan            the library's own file
├── record.json     what the plan is, written once
└── usage.json      how often the plan was taken, and when last
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from iblip.export.system.files import sha256, write_whole

FORMAT = 1
"""Version of the format of `record.json`."""

PLAN, RECORD, USAGE = "plan", "record.json", "usage.json"


class DamagedEntryError(Exception):
    """An entry that cannot be used; the message says why. It never leaves `engines.cache`."""


def now() -> str:
    """The current time in UTC as records have it: ISO 8601, in seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A plan of the cache.

    Attributes:
        key: sha256 of its inputs, in hexadecimal.
        directory: the entry's directory.
        inputs: as `engines.cache.key.PlanInputs.to_json` returns them. In JSON the field is called
            `recipe`.
        graph: component and graph that it was first built for: `vision_encoder/model`.
        details: `engines.tensorrt.builder.Plan.details` when it was built.
        sha256: of the plan, in hexadecimal.
        size: of the plan, in bytes.
        created: when it was built, in ISO 8601.
        build: the directory of the build that built it.
        hits: how often it was taken since.
        used: when it was last taken or built, in ISO 8601.
    """

    key: str
    directory: Path
    inputs: Mapping[str, Any]
    graph: str
    details: Mapping[str, Any]
    sha256: str
    size: int
    created: str
    build: str
    hits: int = 0
    used: str = ""

    @property
    def plan(self) -> Path:
        """The plan's file."""
        return self.directory / PLAN

    @property
    def shared(self) -> bool:
        """Whether a build links to the same file, so that removing it here frees nothing."""
        try:
            return self.plan.stat().st_nlink > 1
        except FileNotFoundError:  # removed meanwhile
            return False

    @property
    def target(self) -> str:
        """The GPUs that the plan is for, in words."""
        device = self.inputs["device"]
        if device:
            return f"{device['name']} ({device['capability']})"
        return ",".join(self.inputs["targets"])

    def to_json(self) -> dict[str, Any]:
        """The record, and what is known of its use, JSON-ready."""
        return {
            **self._record(),
            "path": str(self.plan),
            "hits": self.hits,
            "used": self.used,
            "shared": self.shared,
        }

    def _record(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "graph": self.graph,
            "recipe": dict(self.inputs),
            "details": dict(self.details),
            "sha256": self.sha256,
            "bytes": self.size,
            "created": self.created,
            "build": self.build,
        }

    def write_record(self) -> None:
        """Writes `record.json` into its directory.

        Raises:
            OSError: it cannot be written.
        """
        record = {"format": FORMAT, **self._record()}
        write_whole(self.directory / RECORD, json.dumps(record, indent=2).encode())

    def write_usage(self) -> None:
        """Counts one more hit, now.

        Raises:
            OSError: it cannot be written.
        """
        usage = {"hits": self.hits + 1, "used": now()}
        write_whole(self.directory / USAGE, json.dumps(usage).encode())

    def check(self) -> None:
        """Reads the plan and compares it with the record.

        Raises:
            DamagedEntryError: the plan differs from the record.
        """
        try:
            size, digest = self.plan.stat().st_size, sha256(self.plan)
        except OSError as error:
            raise DamagedEntryError(f"its plan cannot be read: {error}") from error
        if size != self.size:
            raise DamagedEntryError(f"its plan has {size} bytes, expected {self.size}")
        if digest != self.sha256:
            raise DamagedEntryError(f"its plan has sha256 {digest}, expected {self.sha256}")

    @classmethod
    def read(cls, directory: Path) -> Self:
        """The entry in `directory`. The plan is not read; only its size is compared.

        Raises:
            FileNotFoundError: there is no such directory.
            DamagedEntryError: it is not a whole entry of this format.
            OSError: it cannot be read.
        """
        directory.stat()
        try:
            data = json.loads((directory / RECORD).read_bytes())
            if data["format"] != FORMAT or data["key"] != directory.name:
                raise DamagedEntryError(f"its record is of {data['format']} and {data['key']}")
            size = (directory / PLAN).stat().st_size
            if size != data["bytes"]:
                raise DamagedEntryError(f"its plan has {size} bytes, expected {data['bytes']}")
            hits, used = _read_usage(directory)
            return cls(
                key=data["key"],
                directory=directory,
                inputs=data["recipe"],
                graph=data["graph"],
                details=data["details"],
                sha256=data["sha256"],
                size=size,
                created=data["created"],
                build=data["build"],
                hits=hits,
                used=used or data["created"],
            )
        except FileNotFoundError as error:
            directory.stat()  # removed meanwhile, it is not damaged
            raise DamagedEntryError(f"it has no {Path(error.filename).name}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedEntryError(f"its record cannot be read: {error!r}") from error


def _read_usage(directory: Path) -> tuple[int, str]:
    """Hits and last use; `(0, "")` if they were never written or cannot be read."""
    try:
        data = json.loads((directory / USAGE).read_bytes())
        return int(data["hits"]), str(data["used"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, ""
