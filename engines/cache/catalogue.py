"""The contents of the engine cache, and how an entry is found by the first digits of its key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from iblip.engines.cache.entry import DamagedEntryError, Entry
from iblip.engines.cache.store import SHORT, EngineCache
from iblip.engines.compiled import ProviderFolder, provider_folders
from iblip.export.errors import EngineError, OptionError
from iblip.export.messages import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The contents of a cache.

    Attributes:
        entries: entries that can be used, the last used first.
        damaged: keys of damaged entries, each with what is wrong. Plans are not read to find this.
        providers: what engines compiled at their start, beside the cache, the last used first.
    """

    entries: tuple[Entry, ...]
    damaged: Mapping[str, str]
    providers: tuple[ProviderFolder, ...]


def scan(cache: EngineCache) -> Scan:
    """Reads the records of every entry in the cache.

    Raises:
        EngineError: the cache cannot be read.
    """
    entries, damaged = [], {}
    for key in cache.all_keys():
        try:
            entries.append(Entry.read(cache.plans / key))
        except DamagedEntryError as error:
            damaged[key] = str(error)
        except FileNotFoundError:  # removed meanwhile
            continue
        except OSError as error:
            raise cache.unreadable(error) from error
    entries.sort(key=lambda entry: entry.used, reverse=True)
    try:
        providers = tuple(provider_folders(cache.directory))
    except OSError as error:
        raise cache.unreadable(error) from error
    return Scan(entries=tuple(entries), damaged=damaged, providers=providers)


def find(cache: EngineCache, word: str) -> Entry:
    """The entry whose key begins with `word`.

    Raises:
        OptionError: no key does, or several do; the message names the nearest.
        EngineError: the cache cannot be read, or the entry is damaged.
    """
    keys = cache.all_keys()
    matches = [key for key in keys if key.startswith(word.lower())] if word else []
    if len(matches) == 1:
        try:
            return Entry.read(cache.plans / matches[0])
        except (DamagedEntryError, OSError) as error:
            raise EngineError(
                f"{word} of the engine cache is damaged: {error}. The next build that needs it "
                "rebuilds it."
            ) from error
    if matches:
        some = ", ".join(key[: len(word) + 4] for key in matches[:4])
        raise OptionError(f"{len(matches)} plans begin with {word}: {some}. Give more digits.")
    short = {key[: max(len(word), SHORT)]: key for key in keys}
    hint = did_you_mean(word.lower(), short, cutoff=0.5)
    raise OptionError(
        f"the engine cache {cache.directory} has no plan {word!r}.{hint} "
        "`iblip engines list` shows what it has."
    )
