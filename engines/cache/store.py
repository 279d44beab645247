"""The engine cache: a directory of plans, each named by the sha256 of its inputs.

    CACHE/
    ├── plans/<key>/        complete entries only (`engines.cache.entry`)
    ├── making/<key>.…/     entries that are being written; moved into `plans` in one system call
    ├── locks/<key>         held by the process that makes, takes or removes that entry
    └── timing/             timing caches of TensorRT (`engines.tensorrt.timing`)

A cache that is damaged, full or not writable never fails a build: a warning is logged, and the
build goes on without the cache.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iblip.engines.cache.entry import PLAN, DamagedEntryError, Entry, now
from iblip.engines.cache.key import KEY_LENGTH, PlanInputs
from iblip.engines.tensorrt.libraries import SOURCES
from iblip.export.errors import EngineError
from iblip.export.system.cache_directory import VARIABLE
from iblip.export.system.files import link_or_copy, sha256
from iblip.export.system.locks import locked

logger = logging.getLogger(__name__)

SHORT = 12
"""How many digits of a key messages show."""


@dataclass(frozen=True)
class EngineCache:
    """Plans that builds share. Several processes may use one directory at once.

    Args:
        directory: created when something is first kept.
    """

    directory: Path

    @property
    def plans(self) -> Path:
        """The directory of complete entries, each named by its key."""
        return self.directory / "plans"

    @property
    def timing(self) -> Path:
        """The directory of timing caches."""
        return self.directory / "timing"

    @property
    def locks(self) -> Path:
        """The directory of locks, each named by its entry's key."""
        return self.directory / "locks"

    @property
    def making(self) -> Path:
        """The directory of entries that are being written, or that a killed process left behind."""
        return self.directory / "making"

    @contextlib.contextmanager
    def claim(self, key: str, waiting: Callable[[], object] | None) -> Iterator[bool]:
        """Keeps other processes from making, taking or removing one entry.

        What killed processes left of the entry is removed. If no lock can be taken, as in a
        directory that is not writable, the block runs without one: entries are complete all the
        same, and if two processes build an equal one, the second is dropped.

        Args:
            key: of the entry.
            waiting: called before waiting for another process; `None` does not wait.

        Yields:
            Whether the entry is claimed; `False` only if another process has it and `waiting` is
            `None`.
        """
        with contextlib.ExitStack() as stack:
            held = True
            try:
                self.locks.mkdir(parents=True, exist_ok=True)
                held = stack.enter_context(locked(self.locks / key, waiting))
                for leftover in self.making.glob(f"{key}.*") if held else ():
                    shutil.rmtree(leftover, ignore_errors=True)
            except OSError as error:
                logger.info("no lock for %s in the engine cache: %s", key[:SHORT], error)
            yield held

    def has(self, key: str) -> bool:
        """Whether there is an entry, good or damaged."""
        return (self.plans / key).is_dir()

    def take(self, key: str, output: Path) -> Entry | None:
        """Puts the plan of an entry at `output`; `None` if there is no good one.

        The plan is read and compared with its record. A damaged entry is removed with a warning.
        The caller has claimed the entry.

        Args:
            key: of the entry.
            output: becomes a link to the cache's file, or a copy; its directory exists.
        """
        try:
            entry = Entry.read(self.plans / key)
            entry.check()
        except FileNotFoundError:
            return None
        except DamagedEntryError as error:
            self._discard(key, error)
            return None
        except OSError as error:
            logger.warning("the engine cache %s cannot be read: %s", self.directory, error)
            return None
        try:
            link_or_copy(entry.plan, output)
        except OSError as error:
            logger.warning("%s cannot be taken to %s: %s", key[:SHORT], output, error)
            return None
        with contextlib.suppress(OSError):  # a cache that others may only read
            entry.write_usage()
        return entry

    def _discard(self, key: str, reason: DamagedEntryError) -> None:
        outcome = "It is removed and will be rebuilt."
        try:
            self.remove(key)
        except OSError as error:
            outcome = f"It cannot be removed: {error}."
        logger.warning("%s of the engine cache is damaged: %s. %s", key[:SHORT], reason, outcome)

    def keep(
        self, inputs: PlanInputs, plan: Path, *, graph: str, details: Mapping[str, Any], build: str
    ) -> None:
        """Adds a plan that was built; a failure is logged as a warning. The caller has claimed it.

        Args:
            inputs: what it was built from.
            plan: its file, which the cache links or copies. It is made read-only, because every
                link shares it.
            graph: component and graph.
            details: `Plan.details`.
            build: the build that it was built for.
        """
        try:
            self._keep(inputs, plan, graph=graph, details=details, build=build)
        except OSError as error:
            logger.warning(
                "%s was built, but the engine cache %s cannot keep it: %s",
                graph,
                self.directory,
                error,
            )

    def _keep(self, inputs: PlanInputs, plan: Path, **record: Any) -> None:
        key = inputs.key
        self.plans.mkdir(parents=True, exist_ok=True)
        self.making.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f"{key}.", dir=self.making, ignore_cleanup_errors=True
        ) as scratch:
            directory = Path(scratch)
            directory.chmod(0o755)
            link_or_copy(plan, directory / PLAN)
            (directory / PLAN).chmod(0o444)
            entry = Entry(
                key=key,
                directory=directory,
                inputs=inputs.to_json(),
                sha256=sha256(directory / PLAN),
                size=(directory / PLAN).stat().st_size,
                created=now(),
                **record,
            )
            entry.write_record()
            try:
                directory.rename(self.plans / key)
            except OSError as error:  # another process, without locks, was first
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise

    def remove(self, key: str) -> None:
        """Removes an entry, in one step. The caller has claimed it.

        Raises:
            OSError: it cannot be removed.
        """
        self.making.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{key}.", dir=self.making) as scratch:
            (self.plans / key).rename(Path(scratch) / key)

    def discard(self, key: str) -> bool:
        """Removes an entry and its lock; `False` if another process is using it.

        Raises:
            EngineError: it cannot be removed.
        """
        try:
            with self.claim(key, waiting=None) as free:
                if free:
                    with contextlib.suppress(FileNotFoundError):
                        self.remove(key)
                    (self.locks / key).unlink(missing_ok=True)
                return free
        except OSError as error:
            raise EngineError(
                f"{key[:SHORT]} of the engine cache {self.directory} cannot be removed: {error}"
            ) from error

    def sweep(self) -> None:
        """Removes what killed and failed builds left behind and no process is using."""
        leftovers = {path.name.partition(".")[0] for path in _list(self.making)}
        leftovers |= {path.name for path in _list(self.locks)} - set(self.all_keys())
        for key in leftovers:
            with self.claim(key, waiting=None) as free, contextlib.suppress(OSError):
                if free:
                    (self.locks / key).unlink(missing_ok=True)

    def timing_cache(self, inputs: PlanInputs) -> Path | None:
        """The timing cache that a plan of these inputs is built with; `None` if it uses none.

        A timing cache is for one version of a library and one GPU, so only plans for this machine
        use one.
        """
        if inputs.device is None or not SOURCES[inputs.library].times_kernels:
            return None
        words = (inputs.library, inputs.version, *map(str, inputs.device.values()))
        name = re.sub(r"[^a-z0-9.]+", "-", " ".join(words).lower())
        return self.timing / f"{name}.cache"

    def timing_caches(self) -> list[Path]:
        """The files of timing caches."""
        return [path for path in _list(self.timing) if path.suffix == ".cache"]

    def all_keys(self) -> list[str]:
        """The keys of its entries, good or damaged, in order.

        Raises:
            EngineError: the directory cannot be read.
        """
        try:
            names = [path.name for path in _list(self.plans)]
        except OSError as error:
            raise self.unreadable(error) from error
        return [name for name in names if len(name) == KEY_LENGTH]

    def unreadable(self, error: OSError) -> EngineError:
        """The error to raise if reading the cache fails."""
        return EngineError(
            f"the engine cache {self.directory} cannot be read: {error}. Give another directory "
            f"with --engine-cache, or with the variable {VARIABLE}."
        )


def _list(directory: Path) -> list[Path]:
    """The paths in a directory, in order; empty if there is no such directory."""
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []
