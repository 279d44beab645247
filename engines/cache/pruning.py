"""Removing plans from the engine cache and what is beside it, by age, by size, or all."""

from __future__ import annotations

import datetime
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from iblip.engines.cache.catalogue import scan
from iblip.engines.cache.entry import Entry
from iblip.engines.cache.store import EngineCache
from iblip.engines.onnxruntime.compiled import ProviderFolder
from iblip.export.errors import OptionError

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
BYTES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def seconds_from_words(text: str) -> float:
    """Seconds of an age such as `30d`: a number and one of `SECONDS`.

    Raises:
        OptionError: it is none.
    """
    return _amount(text, SECONDS, option="--older-than", example="30d or 12h")


def bytes_from_words(text: str) -> float:
    """Bytes of a size such as `20GB` or `512MiB`: a number and one of `BYTES`, in either case.

    Raises:
        OptionError: it is none.
    """
    return _amount(text, BYTES, option="--max-size", example="20GB or 512MiB")


def _amount(text: str, units: Mapping[str, int], *, option: str, example: str) -> float:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    factors = {name.upper(): factor for name, factor in units.items()}
    factor = factors.get(found[2].upper()) if found else None
    if found is None or factor is None:
        known = ", ".join(name for name in units if name)
        raise OptionError(
            f"{option} {text!r}: wanted a number and a unit, as in {example}. Units: {known}"
        )
    return float(found[1]) * factor


class Kept(Protocol):
    """Something that was used and takes room."""

    @property
    def used(self) -> str:
        """When it was last used, in ISO 8601."""
        ...

    @property
    def size(self) -> int:
        """In bytes."""
        ...


KeptT = TypeVar("KeptT", bound=Kept)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What shall go.

    Attributes:
        older_than: plans that were last used so many seconds ago, and timing caches that were last
            written then; `None` is no reason.
        max_size: those used longest ago, until the rest has at most so many bytes; `None` is no
            limit.
        everything: all.

    Raises:
        OptionError: nothing is asked for.
    """

    older_than: float | None = None
    max_size: float | None = None
    everything: bool = False

    def __post_init__(self) -> None:
        if self.older_than is None and self.max_size is None and not self.everything:
            raise OptionError("nothing says what to remove. Give --older-than, --max-size or --all")

    def chosen(self, kept: Sequence[KeptT]) -> list[KeptT]:
        """Those that go."""
        if self.everything:
            return list(kept)
        oldest = -math.inf if self.older_than is None else time.time() - self.older_than
        left, gone = math.inf if self.max_size is None else self.max_size, []
        for one in sorted(kept, key=lambda one: one.used, reverse=True):
            used = datetime.datetime.fromisoformat(one.used).timestamp()
            if used < oldest or one.size > left:
                gone.append(one)
            else:
                left -= one.size
        return gone


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What was removed, or would be.

    Attributes:
        removed: keys of plans, damaged ones among them.
        timing: names of timing caches.
        providers: names of folders of ONNX Runtime's providers, as `ProviderFolder.name`.
        busy: keys of plans and names of folders that another process is using, which stay.
        freed: bytes that the disk gets back.
        held: bytes of plans that builds still have, and that the disk gets back with these.
        kept: bytes of plans and folders that stay.
    """

    removed: tuple[str, ...]
    timing: tuple[str, ...]
    providers: tuple[str, ...]
    busy: tuple[str, ...]
    freed: int
    held: int
    kept: int


def prune(cache: EngineCache, policy: Policy, *, dry_run: bool = False) -> Pruned:
    """Removes what the policy says; builds keep the plans that they have.

    Plans and what ONNX Runtime's providers have compiled count alike, together for `max_size`.
    Damaged entries, and what killed processes have left, go in any case.

    Args:
        cache: to remove from.
        policy: what goes.
        dry_run: only say what would go.

    Raises:
        EngineError: the cache cannot be read, or something in it cannot be removed.
    """
    found = scan(cache)
    going: list[Entry | ProviderFolder] = policy.chosen([*found.entries, *found.providers])
    chosen = {one.key: one for one in going if isinstance(one, Entry)}
    removed, busy, freed, held = [], [], 0, 0
    for key in (*chosen, *found.damaged):
        entry = chosen.get(key)  # of a damaged one nothing is known
        size, shared = (entry.size, entry.shared) if entry else (0, False)
        if not dry_run and not cache.discard(key):
            busy.append(key)
            continue
        removed.append(key)
        freed, held = (freed, held + size) if shared else (freed + size, held)
    providers = []
    for folder in (one for one in going if isinstance(one, ProviderFolder)):
        if not folder.discard(dry_run=dry_run):
            busy.append(folder.name)
            continue
        providers.append(folder)
        freed += folder.size
    timing = _timing(cache, policy)
    freed += sum(path.stat().st_size for path in timing)
    if not dry_run:
        for path in timing:
            path.unlink(missing_ok=True)
            path.with_suffix(".lock").unlink(missing_ok=True)
        cache.sweep()
    return Pruned(
        removed=tuple(removed),
        timing=tuple(path.name for path in timing),
        busy=tuple(busy),
        freed=freed,
        held=held,
        providers=tuple(folder.name for folder in providers),
        kept=sum(entry.size for entry in found.entries if entry.key not in removed)
        + sum(folder.size for folder in found.providers if folder not in providers),
    )


def _timing(cache: EngineCache, policy: Policy) -> list[Path]:
    """Timing caches that go."""
    if policy.everything:
        return cache.timing_caches()
    if policy.older_than is None:
        return []
    oldest = time.time() - policy.older_than
    return [path for path in cache.timing_caches() if path.stat().st_mtime < oldest]
