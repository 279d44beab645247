"""Removes plans from the engine cache, and what is kept beside it, by age, by size, or all."""

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
from iblip.engines.compiled import ProviderFolder
from iblip.export.errors import OptionError

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
BYTES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def seconds_from_words(text: str) -> float:
    """Seconds of an age such as `30d`: a number and one of `SECONDS`.

    Raises:
        OptionError: the text is not such an age.
    """
    return _parse_amount(text, SECONDS, option="--older-than", example="30d or 12h")


def bytes_from_words(text: str) -> float:
    """Bytes of a size such as `20GB` or `512MiB`: a number and one of `BYTES`, in either case.

    Raises:
        OptionError: the text is not such a size.
    """
    return _parse_amount(text, BYTES, option="--max-size", example="20GB or 512MiB")


def _parse_amount(text: str, units: Mapping[str, int], *, option: str, example: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    factors = {name.upper(): factor for name, factor in units.items()}
    factor = factors.get(match[2].upper()) if match else None
    if match is None or factor is None:
        known = ", ".join(name for name in units if name)
        raise OptionError(
            f"{option} {text!r}: expected a number and a unit, as in {example}. Units: {known}"
        )
    return float(match[1]) * factor


class CacheItem(Protocol):
    """Something in the cache that was last used at some time and takes disk space."""

    @property
    def used(self) -> str:
        """When it was last used, in ISO 8601."""
        ...

    @property
    def size(self) -> int:
        """Disk space that it takes, in bytes."""
        ...


ItemT = TypeVar("ItemT", bound=CacheItem)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What is to be removed.

    Attributes:
        older_than: removes plans last used this many seconds ago or earlier, and timing caches
            last written then; `None` removes nothing by age.
        max_size: removes those used longest ago until the rest takes at most this many bytes;
            `None` is no limit.
        everything: removes all.

    Raises:
        OptionError: the policy removes nothing.
    """

    older_than: float | None = None
    max_size: float | None = None
    everything: bool = False

    def __post_init__(self) -> None:
        if self.older_than is None and self.max_size is None and not self.everything:
            raise OptionError("nothing says what to remove. Give --older-than, --max-size or --all")

    def choose(self, items: Sequence[ItemT]) -> list[ItemT]:
        """The items that are to be removed."""
        if self.everything:
            return list(items)
        oldest = -math.inf if self.older_than is None else time.time() - self.older_than
        room, chosen = math.inf if self.max_size is None else self.max_size, []
        for item in sorted(items, key=lambda item: item.used, reverse=True):
            used = datetime.datetime.fromisoformat(item.used).timestamp()
            if used < oldest or item.size > room:
                chosen.append(item)
            else:
                room -= item.size
        return chosen


def policy_from_words(older_than: str | None, max_size: str | None, everything: bool) -> Policy:
    """The policy that an age, a size or `--all` names.

    Raises:
        OptionError: an age or a size cannot be read, or nothing is named.
    """
    return Policy(
        older_than=None if older_than is None else seconds_from_words(older_than),
        max_size=None if max_size is None else bytes_from_words(max_size),
        everything=everything,
    )


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What was removed, or would be.

    Attributes:
        removed: keys of plans, damaged ones among them.
        timing: names of timing caches.
        providers: names of folders of ONNX Runtime's providers, as `ProviderFolder.name`.
        busy: keys of plans and names of folders that stay because another process is using them.
        freed: bytes of disk space that are free again.
        held: bytes of removed plans that builds still link to, and that are free once these builds
            are removed.
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
    """Removes what the policy names; builds keep the plans that they link to.

    Plans and what ONNX Runtime's providers compiled are treated alike and share `max_size`. Damaged
    entries, and what killed processes left behind, are removed in any case.

    Args:
        cache: to remove from.
        policy: what is to be removed.
        dry_run: only report what would be removed.

    Raises:
        EngineError: the cache cannot be read, or something in it cannot be removed.
    """
    contents = scan(cache)
    chosen: list[Entry | ProviderFolder] = policy.choose([*contents.entries, *contents.providers])
    entries = {item.key: item for item in chosen if isinstance(item, Entry)}
    removed, busy, freed, held = [], [], 0, 0
    for key in (*entries, *contents.damaged):
        entry = entries.get(key)  # nothing is known of a damaged one
        size, shared = (entry.size, entry.shared) if entry else (0, False)
        if not dry_run and not cache.discard(key):
            busy.append(key)
            continue
        removed.append(key)
        freed, held = (freed, held + size) if shared else (freed + size, held)
    providers = []
    for folder in (item for item in chosen if isinstance(item, ProviderFolder)):
        if not folder.discard(dry_run=dry_run):
            busy.append(folder.name)
            continue
        providers.append(folder)
        freed += folder.size
    timing = _choose_timing_caches(cache, policy)
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
        kept=sum(entry.size for entry in contents.entries if entry.key not in removed)
        + sum(folder.size for folder in contents.providers if folder not in providers),
    )


def _choose_timing_caches(cache: EngineCache, policy: Policy) -> list[Path]:
    """The timing caches that are to be removed."""
    if policy.everything:
        return cache.timing_caches()
    if policy.older_than is None:
        return []
    oldest = time.time() - policy.older_than
    return [path for path in cache.timing_caches() if path.stat().st_mtime < oldest]
