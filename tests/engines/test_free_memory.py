"""An engine that a GPU has no room for is refused before any of it is loaded."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from iblip.engines import free_memory
from iblip.engines.cuda.memory import GpuMemory, read_memory
from iblip.engines.hardware.nvidia import Driver, Gpu, has_nvidia_gpu
from iblip.engines.language_model.opening import EngineLimits, open_engine
from iblip.engines.language_model.vllm.opening import share_of_gpu
from iblip.engines.language_model.vllm.settings import VllmSettings
from iblip.engines.memory import MEMORY, ComponentMemory, plan_of_build
from iblip.engines.runners import open_runner
from iblip.export.artifact.manifest import EngineRecord, Manifest
from iblip.export.errors import EngineError

MIB = 1 << 20
ROWS = {
    "vision_encoder": ComponentMemory(component="vision_encoder", weights=300 * MIB, work=30 * MIB),
    "qformer": ComponentMemory(component="qformer", weights=200 * MIB, work=20 * MIB),
    "language_model": ComponentMemory(component="language_model", weights=400 * MIB, work=40 * MIB),
}


@pytest.fixture
def manifest(vicuna_build: Path) -> Manifest:
    """Of a build that says of itself to run on CUDA and to take so much; it has no files there."""
    made = Manifest.read(vicuna_build)
    components = {
        name: replace(
            record,
            engine=replace(
                record.engine, kind="onnxruntime-cuda", details={MEMORY: ROWS[name].to_json()}
            ),
        )
        for name, record in made.components.items()
    }
    return replace(made, components=components)


def has_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Has CUDA say that so many bytes of GPU 0 are free."""
    memory = GpuMemory(free=free, total=2 << 30)
    monkeypatch.setattr(free_memory, "read_memory", lambda number: memory)


def test_a_component_without_room_is_refused_with_the_numbers(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_free(monkeypatch, 320 * MIB)
    message = (
        r"vision_encoder wants \d+\.\d\d MiB of GPU 0 \(\d+\.\d\d MiB for weights and work\), and"
        r" 320\.00 MiB of its 2\.00 GiB are free\. Stop what else runs on it \(nvidia-smi\)"
    )
    with pytest.raises(EngineError, match=message):
        open_runner(tmp_path, manifest, "vision_encoder")
    has_free(monkeypatch, 331 * MIB)
    open_runner(tmp_path, manifest, "vision_encoder")  # nothing is opened before it is entered


def test_a_language_model_is_told_which_slots_would_fit(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Keys and values of 4 layers, 4 heads of 32, in float32.
    position = 2 * 4 * 4 * 32 * 4
    room = 3 * 1024 * position
    has_free(monkeypatch, 440 * MIB + room)
    message = (
        r"language_model wants .* for 8 slots of 1,024 positions\), .*"
        r"`slots` 3 or `max_length` 384 in language_model/config\.pbtxt fits"
    )
    with pytest.raises(EngineError, match=message):
        open_engine(tmp_path, manifest)
    for limits in (EngineLimits(slots=3), EngineLimits(positions=384)):
        with pytest.raises(Exception, match="tokenizer") as caught:  # the next step: it has room
            open_engine(tmp_path, manifest, limits=limits)
        assert "wants" not in str(caught.value)
    has_free(monkeypatch, 440 * MIB)
    with pytest.raises(EngineError, match=r"are free\. Stop what else"):
        open_engine(tmp_path, manifest)


def test_what_was_not_recorded_is_not_checked(
    vicuna_build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_free(monkeypatch, 0)
    with open_runner(vicuna_build, Manifest.read(vicuna_build), "vision_encoder") as runner:
        assert runner.contract.inputs


@pytest.mark.skipif(has_nvidia_gpu(), reason="what is said without a GPU")
def test_a_machine_without_a_gpu_says_nothing_of_its_memory() -> None:
    assert read_memory(0) is None


def test_a_plan_of_a_build_is_what_it_recorded(manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "copy"
    path.mkdir()
    manifest.write(path)
    plan = plan_of_build(Manifest.read(path), card=24 * 10**9, slots=2)
    assert plan is not None
    assert plan.components == tuple(ROWS.values())
    assert (plan.slots, plan.positions) == (2, 1024)
    assert plan.position == 2 * 4 * 4 * 32 * 4
    assert json.loads(json.dumps(plan.to_json()))["fits"] is True
    shutil.rmtree(path)


def with_vllm(manifest: Manifest, **settings: Any) -> Manifest:
    record = manifest.components["language_model"]
    details = {**VllmSettings(**settings).to_details(), MEMORY: ROWS["language_model"].to_json()}
    engine = EngineRecord(kind="vllm", files=record.engine.files, details=details)
    components = {**manifest.components, "language_model": replace(record, engine=engine)}
    return replace(manifest, components=components)


def driver(memory: int) -> Driver:
    gpu = Gpu(name="NVIDIA L4", memory=memory, capability="sm89")
    return Driver(version="580.95.05", cuda="13.0", gpus=(gpu,))


def test_vllm_gets_what_the_components_leave(manifest: Manifest) -> None:
    built = with_vllm(manifest)
    card = 3 << 30
    told = share_of_gpu(built, built.limits, driver(card))
    others = sum(ROWS[name].total for name in ("vision_encoder", "qformer"))
    assert told["gpu_memory_utilization"] * card <= 1.001 * (card - others)
    left = card - others - ROWS["language_model"].total
    position = 2 * 4 * 4 * 32 * 4
    full = built.limits.slots * built.limits.max_length * position
    assert told["kv_cache_memory_bytes"] == full < left
    assert (
        share_of_gpu(built, replace(built.limits, slots=900), driver(card))["kv_cache_memory_bytes"]
        <= left
    )


def test_a_model_that_is_spread_over_gpus_is_planned_for_one_of_them(manifest: Manifest) -> None:
    spread = with_vllm(manifest, tensor_parallel=2, pipeline_parallel=2)
    plan, whole = plan_of_build(spread), plan_of_build(with_vllm(manifest))
    assert plan is not None
    assert whole is not None
    assert 4 * plan.position == whole.position


def test_vllm_takes_the_share_that_was_asked_for_and_nothing_without_a_gpu(
    manifest: Manifest,
) -> None:
    asked = with_vllm(manifest, gpu_memory_utilization=0.5)
    assert share_of_gpu(asked, asked.limits, driver(24 << 30)) == {}
    assert share_of_gpu(with_vllm(manifest), manifest.limits, None) == {}


def test_vllm_without_room_for_one_sequence_is_refused(manifest: Manifest) -> None:
    with pytest.raises(EngineError, match=r"(?s)does not fit the GPU.*language_model.*400\.00 MiB"):
        share_of_gpu(with_vllm(manifest), manifest.limits, driver(2 << 30))
