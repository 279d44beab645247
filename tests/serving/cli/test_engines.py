"""`iblip engines`, as a user calls it, on plans of the real TensorRT-RTX builder."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from iblip.engines.cache.cached_plan import cached_plan
from iblip.engines.cache.store import EngineCache
from iblip.engines.compiled import in_use
from iblip.engines.tensorrt.builder import Plan
from iblip.engines.tensorrt.libraries import find_library
from iblip.engines.tensorrt.options import PlanOptions
from iblip.engines.tensorrt.profile import Profile, Span
from iblip.export.artifact.manifest import Manifest
from iblip.export.artifact.verified_graph import OnnxGraph, VerifiedGraph
from iblip.export.checkpoint.source import ModelSource
from iblip.export.progress import Silent
from iblip.serving.builder.build import build
from iblip.serving.builder.options import BuildOptions, CacheOptions, EngineOptions
from iblip.serving.cli import export, iblip

pytest.importorskip("tensorrt_rtx_bindings")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine-cache")


@pytest.fixture(scope="module")
def built(checkpoints: Path, directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build whose plans came into the cache."""
    return build(
        BuildOptions(
            source=ModelSource(model=str(checkpoints / "instructblip-demo-vicuna")),
            output=tmp_path_factory.mktemp("builds") / "build",
            engines=EngineOptions(engine="tensorrt-rtx"),
            plans=PlanOptions(targets=("sm89",)),
            caches=CacheOptions(engines=directory),
            verification=None,
        )
    )


@pytest.fixture(scope="module")
def taken(vicuna_build: Path, built: Path, directory: Path, tmp_path_factory) -> list[Plan]:
    """Plans of the same checkpoint's graphs in another build, which has none."""
    manifest, parent = Manifest.read(vicuna_build), tmp_path_factory.mktemp("plans")
    found = []
    for component in ("vision_encoder", "qformer"):
        record = manifest.components[component].graphs["model"]
        engine = Manifest.read(built).components[component].engine
        graph = OnnxGraph(
            component=component,
            name="model",
            path=vicuna_build / record.path,
            weights=(),
            precision="fp32",
            digest=record.digest,
            contract=record.contract,
        )
        profiles = [
            Profile(
                axes={
                    axis: Span(min=smallest, opt=opt, max=largest)
                    for axis, (smallest, opt, largest) in axes.items()
                }
            )
            for axes in engine.details["profiles"]
        ]
        plan = cached_plan(
            VerifiedGraph(graph=graph),
            parent / f"{component}.plan",
            cache=EngineCache(directory),
            library=find_library("tensorrt-rtx"),
            profiles=profiles,
            options=PlanOptions(targets=("sm89",)),
            build=str(vicuna_build),
            progress=Silent(),
        )
        found.append(plan)
    return found


@pytest.fixture
def own(taken: list[Plan], directory: Path, tmp_path: Path) -> Path:
    """The cache of these plans, for a test that changes it."""
    return Path(shutil.copytree(directory, tmp_path / "engines", copy_function=os.link))


def call(*arguments: object):
    return CliRunner().invoke(iblip, ["engines", *map(str, arguments)], prog_name="iblip")


def listed(directory: Path) -> list[dict]:
    return json.loads(call("list", "--engine-cache", directory, "--json").stdout)["plans"]


def test_a_plan_names_the_build_that_was_asked_for(
    random_checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `--output`, and with a precision that depends on the checkpoint."""
    monkeypatch.chdir(tmp_path)
    words = ["build", "--model", random_checkpoint("llama"), "--precision", "lavis", "--no-verify"]
    words += ["--engine", "tensorrt-rtx", "--target", "sm89", "--engine-cache", "cache"]
    result = CliRunner().invoke(export, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    (directory,) = (tmp_path / "build").glob("*-lavis")
    assert Manifest.read(directory).precision["language_model"] == "fp16"
    assert {plan["build"] for plan in listed(tmp_path / "cache")} == {str(directory)}


def test_another_build_of_the_same_takes_its_plans_from_the_cache(
    built: Path, taken: list[Plan]
) -> None:
    components = Manifest.read(built).components
    for plan, component in zip(taken, ("vision_encoder", "qformer"), strict=True):
        engine = components[component].engine
        assert not engine.details["cached"]
        assert plan.details["cached"]
        assert plan.details["key"] == engine.details["key"]
        assert plan.path.samefile(built / engine.files["model"])


def test_list_says_what_there_is(built: Path, taken: list[Plan], directory: Path) -> None:
    result = call("list", "--engine-cache", directory)
    assert result.exit_code == 0
    first, header, *lines = result.stdout.splitlines()
    assert first.startswith(f"{directory}: 2 plans, ")
    assert header.split() == ["key", "graph", "library", "for", "size", "built", "used", "hits"]
    assert sorted(" ".join(line.split()[1:6]) for line in lines) == [
        f"{component}/model fp32 tensorrt-rtx {lines[0].split()[4]} sm89"
        for component in ("qformer", "vision_encoder")
    ]
    plans = listed(directory)
    assert {plan["graph"] for plan in plans} == {"qformer/model", "vision_encoder/model"}
    for plan in plans:
        assert plan["recipe"]["targets"] == ["sm89"]
        assert plan["build"] == str(built)
        assert plan["hits"] == 1
        assert plan["shared"]
        assert Path(plan["path"]).stat().st_size == plan["bytes"] == plan["details"]["bytes"]


def test_inspect_takes_a_few_digits_or_a_build(
    built: Path, taken: list[Plan], directory: Path
) -> None:
    plan = listed(directory)[0]
    cache = ("--engine-cache", directory)
    shown = call("inspect", plan["key"][:10], *cache)
    assert shown.exit_code == 0
    assert shown.stdout.startswith(f"{plan['key']}\n")
    assert f"  sha256: {plan['sha256']}\n" in shown.stdout
    found = json.loads(call("inspect", plan["key"][:10], *cache, "--json").stdout)["plans"]
    assert found[plan["key"]].pop("inspector")
    assert found == {plan["key"]: plan}
    of_build = json.loads(call("inspect", built, "--json").stdout)["plans"]
    assert list(of_build) == ["vision_encoder/model", "qformer/model"]
    assert {facts["key"] for facts in of_build.values()} == {p["key"] for p in listed(directory)}
    assert "vision_encoder/model\n  kind: tensorrt-rtx\n" in call("inspect", built).stdout


def test_prune_says_what_it_freed_and_builds_stay_whole(
    built: Path, taken: list[Plan], own: Path
) -> None:
    cache = ("--engine-cache", own)
    total = sum(plan["bytes"] for plan in listed(own))
    kept = call("prune", "--older-than", "30d", *cache)
    assert kept.stdout.startswith("0 plans removed: 0 B freed\n")
    would = call("prune", "--all", "--dry-run", *cache)
    assert would.stdout.startswith("2 plans would be removed: 0 B would be freed\n")
    assert "stay on the disk, because builds share those plans" in would.stdout
    assert len(listed(own)) == 2
    done = json.loads(call("prune", "--all", "--json", *cache).stdout)
    assert (len(done["removed"]), done["freed"], done["held"], done["kept"]) == (2, 0, total, 0)
    assert listed(own) == []
    engine = Manifest.read(built).components["qformer"].engine
    assert (built / engine.files["model"]).stat().st_size == engine.details["bytes"]
    assert taken[1].path.stat().st_size == engine.details["bytes"]


def test_what_onnx_runtime_compiled_is_listed_and_pruned_too(tmp_path: Path) -> None:
    folder = tmp_path / "providers" / "onnxruntime-tensorrt" / ("0ab1" * 16)
    folder.mkdir(parents=True)
    (folder / "model.engine").write_bytes(bytes(2000))
    os.utime(folder, (time.time() - 3.5 * 86400,) * 2)
    cache = ("--engine-cache", tmp_path / "engines")
    shown = call("list", *cache)
    assert shown.stdout.splitlines() == [
        f"{tmp_path / 'engines'}: 0 plans, 0 B",
        "compiled by engines at their start: 1 graph, 2.00 kB",
        "0ab10ab10ab1 by onnxruntime-tensorrt: 2.00 kB, used 3 d ago",
    ]
    (listed,) = json.loads(call("list", "--json", *cache).stdout)["providers"]
    assert listed.pop("used")
    assert listed == {
        "kind": "onnxruntime-tensorrt",
        "graph": "0ab1" * 16,
        "bytes": 2000,
        "path": str(folder),
    }
    with in_use(folder):
        busy = call("prune", "--all", *cache)
    assert "1 plan in use by another process, and kept\n2.00 kB are left" in busy.stdout
    would = call("prune", "--all", "--dry-run", *cache)
    what = "0 plans and what engines compiled of 1 graph"
    assert would.stdout.startswith(f"{what} would be removed: 2.00 kB would be freed\n")
    assert folder.is_dir()
    assert call("prune", "--all", *cache).stdout.startswith(f"{what} removed: 2.00 kB freed\n0 B")
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["inspect", "abcdef"], 2, "has no plan 'abcdef'. `iblip engines list` shows what it has."),
        (["prune"], 2, "nothing says what to remove. Give --older-than, --max-size or --all"),
        (["prune", "--max-size", "lots"], 2, "--max-size 'lots': expected a number and a unit"),
        (["prune", "--older-than", "3"], 2, "--older-than '3': expected a number and a unit"),
        (["inspect", "/"], 1, "is not a build: it has no manifest.json"),
    ],
)
def test_faults_are_told(tmp_path: Path, arguments: list[str], status: int, message: str) -> None:
    result = call(*arguments, "--engine-cache", tmp_path)
    assert result.exit_code == status
    assert message in result.stderr


def test_a_build_without_plans_is_told(vicuna_build: Path) -> None:
    result = call("inspect", vicuna_build)
    assert result.exit_code == 1
    assert "has no TensorRT plans. Build with --engine tensorrt" in result.stderr


def test_a_directory_that_is_no_cache_is_told(tmp_path: Path) -> None:
    (tmp_path / "plans").write_text("a file")
    result = call("list", "--engine-cache", tmp_path)
    assert result.exit_code == 1
    assert "cannot be read" in result.stderr
    assert "IBLIP_CACHE" in result.stderr


def test_one_says_a_cache_or_none() -> None:
    arguments = ["export", "build", "--engine-cache", "x", "--no-engine-cache"]
    result = CliRunner().invoke(iblip, arguments)
    assert result.exit_code == 2
    assert "--engine-cache and --no-engine-cache: give one of them" in result.stderr


def call_build(*arguments: object):
    words = ["engines", "build", "--engine", "tensorrt-rtx", *arguments]
    return CliRunner().invoke(iblip, [str(word) for word in words], prog_name="iblip")


def test_plans_of_a_builds_graphs_are_shown_as_a_table(built: Path, own: Path) -> None:
    graphs = ("--graph", "vision_encoder/model", "--graph", "language_model/embed_tokens")
    options = ("--target", "sm89", "--engine-cache", own, *graphs)
    for again in (False, True):
        result = call_build(built, *options)
        assert result.exit_code == 0, result.output
        head, vision, embed = (line.split() for line in result.stdout.splitlines())
        assert head[:4] == ["graph", "precision", "seconds", "size"]
        assert vision[:2] == ["vision_encoder/model", "fp32"]
        assert embed[:2] == ["language_model/embed_tokens", "fp32"]
        assert "(cached)" in embed or not again
    assert (built.with_name("build-tensorrt-rtx") / "vision_encoder" / "model.plan").is_file()


def test_a_graph_that_fails_is_named_and_the_status_says_so(built: Path, tmp_path: Path) -> None:
    options = ("--target", "sm89", "--no-engine-cache", "--output", tmp_path, "--json")
    result = call_build(built, *options, "--graph", "language_model/batched_decoder")
    assert result.exit_code == 1
    (row,) = json.loads(result.stdout)["plans"]
    assert "tensorrt-rtx cannot read" in row["reason"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", __file__], "is a file"),
        (["--engine", "onnxruntime"], "--engine onnxruntime has no plans; expected one of tensor"),
        (["--target", "sm90"], "--target sm90: tensorrt-rtx"),
        (["--target", "sm89", "--builder-flag", "refit"], "--builder-flag refit: tensorrt-rtx"),
        (["--target", "sm89", "--graph", "decoder"], "--graph decoder: the build has no such"),
        (["--target", "sm89", "--opt-batch", "9"], "--opt-batch is 9; expected 1 to 8"),
        (["--target", "sm89", "--max-instruction", "9999"], "--max-instruction is 9999; this bu"),
        (["--target", "sm89", "--profile", "batch=1:1:4"], "no --profile that holds every request"),
    ],
)
def test_a_call_that_cannot_work_is_refused(
    built: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr("iblip.engines.tensorrt.libraries.has_nvidia_gpu", lambda: False)
    result = call_build(built, "--no-engine-cache", *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output
