"""Plans go by age, by size or all; builds keep theirs."""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from iblip.engines.cache.catalogue import scan
from iblip.engines.cache.pruning import Policy, bytes_from_words, prune, seconds_from_words
from iblip.engines.cache.store import EngineCache
from iblip.export.errors import OptionError

Keep = Callable[..., str]
DAY = 86400.0


def last_used(cache: EngineCache, key: str, *, days_ago: float) -> None:
    moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days_ago)
    usage = {"hits": 1, "used": moment.isoformat(timespec="seconds")}
    (cache.plans / key / "usage.json").write_text(json.dumps(usage))


def left(cache: EngineCache) -> list[str]:
    return [entry.key for entry in scan(cache).entries]


@pytest.fixture
def aged(cache: EngineCache, keep: Keep) -> list[str]:
    """Three plans of 100 bytes, used 1, 10 and 40 days ago."""
    keys = [keep(number, bytes(100)) for number in range(3)]
    for key, days in zip(keys, (1, 10, 40), strict=True):
        last_used(cache, key, days_ago=days)
    return keys


@pytest.mark.parametrize(
    ("policy", "stay"),
    [
        (Policy(older_than=30 * DAY), 2),
        (Policy(older_than=5 * DAY), 1),
        (Policy(max_size=200), 2),
        (Policy(max_size=199), 1),
        (Policy(max_size=0), 0),
        (Policy(older_than=30 * DAY, max_size=100), 1),
        (Policy(older_than=50 * DAY), 3),
        (Policy(everything=True), 0),
    ],
)
def test_what_was_used_longest_ago_goes_first(
    cache: EngineCache, aged: list[str], policy: Policy, stay: int
) -> None:
    would = prune(cache, policy, dry_run=True)
    assert left(cache) == aged
    done = prune(cache, policy)
    assert done == would
    assert left(cache) == aged[:stay]
    assert set(done.removed) == set(aged[stay:])
    assert (done.freed, done.held, done.kept) == (100 * (3 - stay), 0, 100 * stay)
    assert {path.name for path in cache.locks.iterdir()} == set(aged[:stay])


def test_a_plan_of_size_that_does_not_fit_goes_and_smaller_ones_stay(
    cache: EngineCache, keep: Keep
) -> None:
    small, large = keep(1, bytes(10)), keep(2, bytes(1000))
    last_used(cache, small, days_ago=2)
    last_used(cache, large, days_ago=1)
    prune(cache, Policy(max_size=500))
    assert left(cache) == [small]


def test_builds_keep_their_plans(cache: EngineCache, keep: Keep, tmp_path: Path) -> None:
    key, mine = keep(1, b"a plan"), tmp_path / "model.plan"
    cache.take(key, mine)
    done = prune(cache, Policy(everything=True))
    assert (done.freed, done.held) == (0, 6)
    assert mine.read_bytes() == b"a plan"


def test_a_plan_in_use_stays(cache: EngineCache, keep: Keep) -> None:
    used, free = keep(1), keep(2)
    with cache.claim(used, waiting=None):
        done = prune(cache, Policy(everything=True))
    assert (done.busy, done.removed) == ((used,), (free,))
    assert left(cache) == [used]


def test_damage_and_leftovers_go_in_any_case(cache: EngineCache, keep: Keep) -> None:
    good, bad = keep(1), keep(2)
    (cache.plans / bad / "record.json").write_text("{")
    half = cache.making / f"{'0' * 64}.abc"
    half.mkdir()
    (half / "plan").write_bytes(b"half")
    (cache.locks / ("0" * 64)).touch()
    done = prune(cache, Policy(older_than=30 * DAY))
    assert done.removed == (bad,)
    assert left(cache) == [good]
    assert list(cache.making.iterdir()) == []
    assert [path.name for path in cache.locks.iterdir()] == [good]


def test_timing_caches_go_by_age_or_with_all(cache: EngineCache, keep: Keep) -> None:
    cache.timing.mkdir(parents=True)
    old, new = cache.timing / "tensorrt-10.13-old.cache", cache.timing / "tensorrt-11-new.cache"
    for path in (old, new):
        path.write_bytes(b"timings")
        path.with_suffix(".lock").touch()
    os.utime(old, (time.time() - 40 * DAY,) * 2)
    assert prune(cache, Policy(max_size=0)).timing == ()
    done = prune(cache, Policy(older_than=30 * DAY))
    assert (done.timing, done.freed) == ((old.name,), 7)
    assert prune(cache, Policy(everything=True)).timing == (new.name,)
    assert list(cache.timing.iterdir()) == []


def test_an_empty_cache_has_nothing_to_prune(cache: EngineCache) -> None:
    done = prune(cache, Policy(everything=True))
    assert (done.removed, done.freed) == ((), 0)
    assert not cache.directory.exists()


@pytest.mark.parametrize(
    ("text", "seconds"), [("30d", 30 * DAY), ("12h", DAY / 2), ("1.5W", 10.5 * DAY), ("0s", 0)]
)
def test_ages_are_read(text: str, seconds: float) -> None:
    assert seconds_from_words(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("20GB", 2e10), ("512MiB", 2**29), ("512mib", 2**29), ("7", 7), ("1 kb", 1e3)],
)
def test_sizes_are_read(text: str, size: float) -> None:
    assert bytes_from_words(text) == size


@pytest.mark.parametrize("text", ["", "d", "30", "-3d", "30 days", "nan"])
def test_other_ages_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"--older-than .* as in 30d or 12h\. Units: s, m, h"):
        seconds_from_words(text)


@pytest.mark.parametrize("text", ["", "GB", "20G", "-1GB", "lots"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"--max-size .* as in 20GB or 512MiB\. Units: B, KB"):
        bytes_from_words(text)


def test_an_age_before_all_time_removes_nothing(cache: EngineCache, keep: Keep) -> None:
    keep(0)
    assert prune(cache, Policy(older_than=seconds_from_words("9" * 12 + "w"))).removed == ()


def test_a_policy_says_something() -> None:
    with pytest.raises(OptionError, match="Give --older-than, --max-size or --all"):
        Policy()
