"""What ONNX Runtime's providers keep: found, pruned, and left alone while a session has it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from iblip.engines.cache.pruning import Policy, prune
from iblip.engines.cache.store import EngineCache
from iblip.engines.compiled import (
    folder_of_graph,
    in_use,
    opening,
    provider_cache,
    provider_folders,
)
from iblip.engines.onnxruntime.providers import Placement
from iblip.engines.onnxruntime.runner import OnnxRuntimeRunner
from iblip.export.artifact.verified_graph import OnnxGraph
from iblip.export.errors import EngineError

DAY = 86400.0
Fill = Callable[..., Path]
Write = Callable[..., OnnxGraph]


@pytest.fixture
def fill(cache: EngineCache) -> Fill:
    """`fill(3, days_ago=2)`: what a provider has compiled of a graph, 100 bytes of it."""

    def make(number: int, *, days_ago: float, kind: str = "onnxruntime-tensorrt") -> Path:
        folder = folder_of_graph(cache.directory, kind, f"{number:064x}")
        (folder / "more").mkdir(parents=True)
        (folder / "model.engine").write_bytes(bytes(60))
        (folder / "more" / "model.profile").write_bytes(bytes(40))
        os.utime(folder, (time.time() - days_ago * DAY,) * 2)
        return folder

    return make


def test_only_their_own_folders_are_found(cache: EngineCache, fill: Fill) -> None:
    older = fill(1, days_ago=2)
    newer = fill(2, days_ago=1, kind="onnxruntime-tensorrt-rtx")
    fill(3, days_ago=1, kind="somebody-elses")
    (older.parent / "notes").mkdir()
    with in_use(older), opening(older):  # locks are no folders
        os.utime(older, (time.time() - 2 * DAY,) * 2)
        found = provider_folders(cache.directory)
    assert [(one.path, one.size) for one in found] == [(newer, 100), (older, 100)]
    assert found[0].name == f"onnxruntime-tensorrt-rtx/{2:064x}"
    assert provider_folders(cache.directory / "elsewhere") == []


@pytest.mark.parametrize(
    ("policy", "plan_stays", "stay"),
    [
        (Policy(older_than=30 * DAY), True, [1, 10]),
        (Policy(older_than=5 * DAY), True, [1]),
        (Policy(max_size=220), True, [1, 10]),
        (Policy(max_size=199), True, [1]),
        (Policy(max_size=0), False, []),
        (Policy(everything=True), False, []),
    ],
)
def test_they_go_with_plans_by_age_and_size(
    cache: EngineCache,
    keep: Callable[..., str],
    fill: Fill,
    policy: Policy,
    plan_stays: bool,
    stay: list[int],
) -> None:
    keep(0, bytes(20))  # used now
    folders = {days: fill(days, days_ago=days) for days in (1, 10, 40)}
    would = prune(cache, policy, dry_run=True)
    assert all(folder.is_dir() for folder in folders.values())
    done = prune(cache, policy)
    assert done == would
    assert bool(cache.all_keys()) == plan_stays
    assert [days for days, folder in folders.items() if folder.exists()] == stay
    assert len(done.providers) == 3 - len(stay)
    assert done.kept == 20 * plan_stays + 100 * len(stay)
    assert done.freed == 20 * (not plan_stays) + 100 * (3 - len(stay))
    left = {path.name for path in folders[1].parent.iterdir() if path.is_dir()}
    assert left == {f"{days:064x}" for days in stay}


def test_what_a_session_has_open_stays(cache: EngineCache, fill: Fill, vision_graph: Write) -> None:
    graph = vision_graph()
    used, free = fill(1, days_ago=40), fill(2, days_ago=40)
    with OnnxRuntimeRunner(graph.path, graph.contract, placement=Placement(cache=used)):
        assert Policy(older_than=30 * DAY).choose(provider_folders(cache.directory)) == [
            one for one in provider_folders(cache.directory) if one.path == free
        ]
        done = prune(cache, Policy(everything=True))
        assert (done.busy, done.kept) == ((f"onnxruntime-tensorrt/{1:064x}",), 100)
        assert prune(cache, Policy(everything=True), dry_run=True).busy == done.busy
        assert (used / "model.engine").is_file()
        assert not free.exists()
    assert prune(cache, Policy(everything=True)).freed == 100
    assert list(used.parent.iterdir()) == []


def test_a_session_that_does_not_open_holds_nothing(
    cache: EngineCache, fill: Fill, vision_graph: Write
) -> None:
    graph = vision_graph()
    graph.path.write_bytes(b"no graph")
    folder = fill(1, days_ago=0)
    with (
        pytest.raises(EngineError, match="cannot load"),
        OnnxRuntimeRunner(graph.path, graph.contract, placement=Placement(cache=folder)),
    ):
        pass
    assert prune(cache, Policy(everything=True)).freed == 100


def test_one_session_is_opened_after_another(fill: Fill) -> None:
    folder, seen = fill(1, days_ago=0), []

    def session() -> None:
        with in_use(folder), opening(folder):
            seen.append("begins")
            time.sleep(0.05)
            seen.append("ends")

    threads = [threading.Thread(target=session) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["begins", "ends"] * 4


def test_a_folder_that_was_pruned_before_it_is_used_is_there_again(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IBLIP_CACHE", str(cache.directory.parent))
    folder = provider_cache("onnxruntime-tensorrt", "a" * 64)
    assert folder is not None
    beside = EngineCache(cache.directory.parent / "engines")
    assert prune(beside, Policy(everything=True)).providers == (f"onnxruntime-tensorrt/{'a' * 64}",)
    with in_use(folder):
        assert folder.is_dir()


def test_without_locks_a_session_is_opened_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    opened = False
    with in_use(tmp_path / "file" / "folder"), opening(tmp_path / "file" / "folder"):
        opened = True
    with in_use(None), opening(None):
        assert opened


def test_what_cannot_be_removed_is_told(
    cache: EngineCache, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(1, days_ago=0)

    def fail(path: Path) -> None:
        raise PermissionError(f"not {path.name}")

    monkeypatch.setattr("iblip.engines.compiled.shutil.rmtree", fail)
    with pytest.raises(EngineError, match=r"0001 cannot be removed: not 0"):
        prune(cache, Policy(everything=True))
    assert prune(cache, Policy(everything=True), dry_run=True).freed == 100
