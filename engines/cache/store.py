"""The engine cache: a directory of plans by the sha256 of what they are made of.

    CACHE/
    ├── plans/<key>/        whole entries alone (`engines.cache.entry`)
    ├── making/<key>.…/     entries that are being written; moved into `plans` in one system call
    ├── locks/<key>         held by who makes, takes or removes that entry
    └── timing/             timing caches of TensorRT (`engines.tensorrt.timing`)

A cache that is damaged, full or not writable never fails a build: it is said, and the build goes on
without.
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
from iblip.engines.cache.key import KEY_LENGTH, Recipe
from iblip.engines.tensorrt.libraries import SOURCES
from iblip.export.errors import EngineError
from iblip.export.system.cache_directory import VARIABLE
from iblip.export.system.files import link_or_copy, sha256
from iblip.export.system.locks import locked

logger = logging.getLogger(__name__)

SHORT = 12
"""Digits of a key that are shown to people."""


@dataclass(frozen=True)
class EngineCache:
    """Plans that builds share. Several processes may use one directory at once.

    Args:
        directory: made when something is first kept.
    """

    directory: Path

    @property
    def plans(self) -> Path:
        """Of whole entries, each named by its key."""
        return self.directory / "plans"

    @property
    def timing(self) -> Path:
        """Of timing caches."""
        return self.directory / "timing"

    @property
    def locks(self) -> Path:
        """Of locks, each named by its entry's key."""
        return self.directory / "locks"

    @property
    def making(self) -> Path:
        """Of entries that are being written, or that a killed process has left."""
        return self.directory / "making"

    @contextlib.contextmanager
    def claim(self, key: str, waiting: Callable[[], object] | None) -> Iterator[bool]:
        """Keeps other processes from making, taking or removing one entry.

        What killed processes left of it is removed. Where there can be no lock, as in a directory
        that is not writable, the block runs without: entries are whole all the same, and of two
        equal ones that are made the second is dropped.

        Args:
            key: of the entry.
            waiting: called before waiting for another process; `None` does not wait.

        Yields:
            Whether nobody else has it: `False` only without waiting.
        """
        with contextlib.ExitStack() as stack:
            held = True
            try:
                self.locks.mkdir(parents=True, exist_ok=True)
                held = stack.enter_context(locked(self.locks / key, waiting))
                for left in self.making.glob(f"{key}.*") if held else ():
                    shutil.rmtree(left, ignore_errors=True)
            except OSError as error:
                logger.info("no lock for %s in the engine cache: %s", key[:SHORT], error)
            yield held

    def has(self, key: str) -> bool:
        """Whether there is an entry, good or damaged."""
        return (self.plans / key).is_dir()

    def take(self, key: str, output: Path) -> Entry | None:
        """Puts the plan of an entry at `output`; `None` where there is no good one.

        The plan is read and compared with its record. A damaged entry is removed, and told as a
        warning. To be called with the entry claimed.

        Args:
            key: of the entry.
            output: of the plan, a link to the cache's file or a copy; its directory exists.
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
        outcome = "It is removed, and built anew."
        try:
            self.remove(key)
        except OSError as error:
            outcome = f"It cannot be removed: {error}."
        logger.warning("%s of the engine cache is damaged: %s. %s", key[:SHORT], reason, outcome)

    def keep(
        self, recipe: Recipe, plan: Path, *, graph: str, details: Mapping[str, Any], build: str
    ) -> None:
        """Adds a plan that was built; a fault is told as a warning. To be called with it claimed.

        Args:
            recipe: that it was built by.
            plan: its file, which the cache links or copies. It is made read-only, as links to it
                share it.
            graph: component and graph.
            details: as the builder gave them.
            build: for which it was built.
        """
        try:
            self._keep(recipe, plan, graph=graph, details=details, build=build)
        except OSError as error:
            logger.warning(
                "%s was built, but the engine cache %s cannot keep it: %s",
                graph,
                self.directory,
                error,
            )

    def _keep(self, recipe: Recipe, plan: Path, **known: Any) -> None:
        key = recipe.key
        self.plans.mkdir(parents=True, exist_ok=True)
        self.making.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f"{key}.", dir=self.making, ignore_cleanup_errors=True
        ) as scratch:
            made = Path(scratch)
            made.chmod(0o755)
            link_or_copy(plan, made / PLAN)
            (made / PLAN).chmod(0o444)
            entry = Entry(
                key=key,
                directory=made,
                recipe=recipe.to_json(),
                sha256=sha256(made / PLAN),
                size=(made / PLAN).stat().st_size,
                created=now(),
                **known,
            )
            entry.write_record()
            try:
                made.rename(self.plans / key)
            except OSError as error:  # another process, without locks, was first
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise

    def remove(self, key: str) -> None:
        """Removes an entry, in one step. To be called with it claimed.

        Raises:
            OSError: it cannot be removed.
        """
        self.making.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{key}.", dir=self.making) as scratch:
            (self.plans / key).rename(Path(scratch) / key)

    def discard(self, key: str) -> bool:
        """Removes an entry and its lock; `False` where another process is using it.

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
        """Removes what killed and failed builds have left, and that no process is using."""
        left = {path.name.partition(".")[0] for path in _names(self.making)}
        left |= {path.name for path in _names(self.locks)} - set(self.all_keys())
        for key in left:
            with self.claim(key, waiting=None) as free, contextlib.suppress(OSError):
                if free:
                    (self.locks / key).unlink(missing_ok=True)

    def timing_cache(self, recipe: Recipe) -> Path | None:
        """Where the timings lie that a plan of that recipe is built with; `None` if with none.

        They are of one version of a library and one GPU: of plans for this machine alone.
        """
        if recipe.device is None or not SOURCES[recipe.library].times_kernels:
            return None
        words = (recipe.library, recipe.version, *map(str, recipe.device.values()))
        name = re.sub(r"[^a-z0-9.]+", "-", " ".join(words).lower())
        return self.timing / f"{name}.cache"

    def timing_caches(self) -> list[Path]:
        """Files of timing caches."""
        return [path for path in _names(self.timing) if path.suffix == ".cache"]

    def all_keys(self) -> list[str]:
        """Of its entries, good or damaged, in order.

        Raises:
            EngineError: it cannot be read.
        """
        try:
            names = [path.name for path in _names(self.plans)]
        except OSError as error:
            raise self.unreadable(error) from error
        return [name for name in names if len(name) == KEY_LENGTH]

    def unreadable(self, error: OSError) -> EngineError:
        """What to raise where reading it fails."""
        return EngineError(
            f"the engine cache {self.directory} cannot be read: {error}. Give another directory "
            f"with --engine-cache, or with the variable {VARIABLE}."
        )


def _names(directory: Path) -> list[Path]:
    """What is in a directory, in order; nothing where there is none."""
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []
