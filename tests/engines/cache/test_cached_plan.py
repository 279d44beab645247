"""Plans by the real TensorRT-RTX builder through the cache, in one process and in several."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from iblip.engines.cache.cached_plan import cached_plan
from iblip.engines.cache.catalogue import scan
from iblip.engines.cache.store import EngineCache
from iblip.engines.tensorrt.builder import Plan
from iblip.engines.tensorrt.libraries import UNKNOWN_VERSION, Library, find_library
from iblip.engines.tensorrt.options import PlanOptions
from iblip.engines.tensorrt.profile import Profile, Span
from iblip.export.artifact.verified_graph import OnnxGraph, VerifiedGraph
from iblip.export.graph.digest import digest_from_onnx
from iblip.export.progress import Silent

pytest.importorskip("tensorrt_rtx_bindings")

BATCHES = Profile(axes={"batch": Span(min=1, opt=2, max=8)})
Write = Callable[..., OnnxGraph]


class Told(Silent):
    """Keeps the titles of stages."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def stage(self, title: str, total: int | None = None, unit: str = "") -> Any:
        self.stages.append(title)
        return super().stage(title, total, unit)


@pytest.fixture(scope="module")
def library() -> Library:
    return find_library("tensorrt-rtx")


@pytest.fixture
def graph(vision_graph: Write) -> VerifiedGraph:
    written = vision_graph("float16")
    return VerifiedGraph(graph=replace(written, digest=digest_from_onnx(written.path)))


@pytest.fixture
def plan(
    cache: EngineCache, graph: VerifiedGraph, library: Library, tmp_path: Path
) -> Callable[..., Plan]:
    """`plan(library=…)`: of the graph, into `model.plan`, with what the test changes."""

    def make(**changes: Any) -> Plan:
        given = {
            "cache": cache,
            "library": library,
            "profiles": [BATCHES],
            "options": PlanOptions(targets=("sm89",)),
            "build": "/builds/demo",
            "progress": Silent(),
        }
        verified = changes.pop("verified", graph)
        return cached_plan(verified, tmp_path / "model.plan", **{**given, **changes})

    return make


def without_builder(library: Library) -> Library:
    """The library with what its options are checked against, and nothing to build with."""
    names = ("ComputeCapability", "BuilderFlag")
    module = SimpleNamespace(**{name: getattr(library.module, name) for name in names})
    return replace(library, module=module)


def test_the_second_plan_comes_from_the_cache_and_needs_no_builder(
    plan: Callable[..., Plan], library: Library, cache: EngineCache
) -> None:
    first = plan()
    content = first.path.read_bytes()
    first.path.unlink()
    told = Told()
    second = plan(library=without_builder(library), progress=told)
    assert second.path.read_bytes() == content
    assert second.details == {**first.details, "cached": True}
    assert not first.details["cached"]
    short = second.details["key"][:12]
    assert told.stages == [f"take vision_encoder/model.plan from the engine cache ({short})"]
    assert [entry.hits for entry in scan(cache).entries] == [1]


def change_a_weight(graph: OnnxGraph) -> None:
    weights = graph.weights[0]
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def test_a_changed_weight_misses_it(
    plan: Callable[..., Plan], library: Library, graph: VerifiedGraph
) -> None:
    first = plan()
    change_a_weight(graph.graph)
    changed = replace(graph.graph, digest=digest_from_onnx(graph.graph.path))
    second = plan(verified=replace(graph, graph=changed))
    assert not second.details["cached"]
    assert second.details["key"] != first.details["key"]


@pytest.mark.parametrize(
    "changes",
    [
        {"profiles": [Profile(axes={"batch": Span(min=1, opt=2, max=4)})]},
        {"options": PlanOptions(targets=("sm86",))},
        {"options": PlanOptions(targets=("sm89",), flags=("strict-nans",))},
    ],
)
def test_another_profile_target_or_flag_misses_it(
    plan: Callable[..., Plan], library: Library, changes: dict[str, Any]
) -> None:
    plan()
    with pytest.raises(AttributeError):  # it would build, and has nothing to build with
        plan(library=without_builder(library), **changes)


def test_a_damaged_plan_is_built_anew(
    plan: Callable[..., Plan], cache: EngineCache, caplog: pytest.LogCaptureFixture
) -> None:
    first = plan()
    first.path.unlink()
    os.truncate(cache.plans / first.details["key"] / "plan", 100)
    second = plan()
    assert "is damaged: its plan has 100 bytes" in caplog.text
    assert not second.details["cached"]
    assert plan().details["cached"]


def test_proof_is_of_the_build_and_not_of_the_cache(
    plan: Callable[..., Plan], graph: VerifiedGraph
) -> None:
    unproven = VerifiedGraph.without_proof(graph.graph, reason="--no-verify")
    assert plan(verified=unproven).details["unverified"] == "--no-verify"
    proven = plan()
    assert proven.details["cached"]
    assert "unverified" not in proven.details
    assert plan(verified=unproven).details["unverified"] == "--no-verify"


def test_without_a_cache_every_plan_is_built(plan: Callable[..., Plan], cache: EngineCache) -> None:
    assert "key" not in plan(cache=None).details
    assert not cache.directory.exists()


def test_a_plan_of_an_unknown_version_is_not_kept(
    plan: Callable[..., Plan], library: Library, cache: EngineCache
) -> None:
    assert "key" not in plan(library=replace(library, version=UNKNOWN_VERSION)).details
    assert not cache.directory.exists()


SCRIPT = """
import json, sys, time
from dataclasses import replace
from pathlib import Path

import iblip.engines.cache.entry
import iblip.engines.cache.cached_plan
from iblip.engines.cache.cached_plan import cached_plan
from iblip.engines.cache.store import EngineCache
from iblip.engines.tensorrt.libraries import find_library
from iblip.engines.tensorrt.options import PlanOptions
from iblip.engines.tensorrt.profile import Profile, Span
from iblip.export.artifact.contract import Contract
from iblip.export.artifact.verified_graph import OnnxGraph, VerifiedGraph
from iblip.export.progress import Silent

class Told(Silent):
    def note(self, message):
        print(message, flush=True)

given = json.loads(sys.argv[1])
if given["stop"]:
    record = given["stop"] == "write_record"
    owner = iblip.engines.cache.entry.Entry if record else iblip.engines.cache.cached_plan
    def stop(*_, **__):
        print("stopped", flush=True)
        time.sleep(600)
    setattr(owner, given["stop"], stop)
graph = OnnxGraph(
    component="vision_encoder", name="model", path=Path(given["graph"]), weights=(),
    precision="fp16", digest=given["digest"], contract=Contract.from_json(given["contract"]),
)
plan = cached_plan(
    VerifiedGraph(graph=graph), Path(given["output"]), cache=EngineCache(Path(given["cache"])),
    library=find_library("tensorrt-rtx"),
    profiles=[Profile(axes={"batch": Span(min=1, opt=2, max=8)})],
    options=PlanOptions(targets=("sm89",)), build="/builds/other", progress=Told(),
)
print(json.dumps(plan.details["cached"]), flush=True)
"""


@pytest.fixture
def start(
    graph: VerifiedGraph, cache: EngineCache, tmp_path: Path
) -> Callable[..., subprocess.Popen[str]]:
    """`start("one", stop="…")`: a process that wants the same plan; `stop` is where it stays."""

    def make(name: str, *, stop: str | None = None) -> subprocess.Popen[str]:
        given = {
            "graph": str(graph.graph.path),
            "digest": graph.graph.digest,
            "contract": graph.graph.contract.to_json(),
            "output": str(tmp_path / f"{name}.plan"),
            "cache": str(cache.directory),
            "stop": stop,
        }
        command = [sys.executable, "-c", SCRIPT, json.dumps(given)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    return make


def test_of_processes_that_race_one_builds_and_the_others_take_its_plan(
    start: Callable[..., subprocess.Popen[str]], cache: EngineCache, tmp_path: Path
) -> None:
    names = ("one", "two", "three")
    processes = [start(name) for name in names]
    said = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    assert sorted(lines[-1] for lines in said) == ["false", "true", "true"]
    (entry,) = scan(cache).entries
    entry.check()
    assert entry.hits == 2
    for name in names:
        assert (tmp_path / f"{name}.plan").samefile(entry.plan)


@pytest.mark.parametrize("stop", ["plan_from_onnx", "write_record"])
def test_a_process_that_is_killed_in_the_middle_leaves_nothing_to_be_found(
    start: Callable[..., subprocess.Popen[str]], cache: EngineCache, tmp_path: Path, stop: str
) -> None:
    with start("killed", stop=stop) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "stopped\n"
        with start("other") as other:
            assert other.stdout is not None
            waits = "another process is building vision_encoder/model.plan; waiting for it\n"
            assert other.stdout.readline() == waits
            assert scan(cache).entries == ()
            os.kill(killed.pid, signal.SIGKILL)
            assert other.stdout.read() == "false\n"
    (entry,) = scan(cache).entries
    entry.check()
    assert list(cache.making.iterdir()) == []
    assert (tmp_path / "other.plan").samefile(entry.plan)
