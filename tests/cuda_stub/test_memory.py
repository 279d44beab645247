"""What an engine takes of a GPU against what its build planned, and what it says where that is not
free."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from iblip.engines.language_model.opening import EngineLimits, open_engine
from iblip.engines.memory import plan_of_build
from iblip.engines.runners import open_runner
from iblip.export.artifact.manifest import BATCH, Manifest
from iblip.export.errors import EngineError
from tests.cuda_stub.counting import read_counters, settings

pytestmark = pytest.mark.cuda_stub

TOTAL = 140 << 30
"""`total_bytes` of the stubs."""

PROCESS = 1 << 20
"""Bytes that ONNX Runtime keeps for a process once buffers have been made on the device."""

VICUNA = "instructblip-demo-vicuna"
PRECISIONS = ("fp16", "vision_encoder=fp16,qformer=fp16,language_model=int4")


def taken() -> int:
    return read_counters()["allocated_bytes"]


def zeros(contract, **sizes):
    """Inputs of a graph, with these sizes of its dynamic axes."""
    return {
        spec.name: np.zeros([sizes.get(axis, axis) for axis in spec.axes], spec.numpy_dtype)
        for spec in contract.inputs
    }


@pytest.mark.parametrize("component", ["vision_encoder", "qformer"])
def test_a_component_takes_what_was_planned(component, cuda_build):
    build = cuda_build(VICUNA, "fp16")
    manifest = Manifest.read(build)
    row = next(r for r in plan_of_build(manifest).components if r.component == component)
    before = taken()
    with open_runner(build, manifest, component) as runner:
        loaded = taken() - before
        # The graph for CUDA has scales and shifts of LayerNorm in 16 bits.
        assert 0.99 * row.weights <= loaded <= 1.1 * row.weights
        runner.infer(zeros(runner.contract, batch=BATCH, instruction=128))
        # The buffers of captured runs are left to the plan's reserve.
        assert loaded < taken() - before <= 1.2 * (row.weights + row.work)
    assert taken() - before in (0, PROCESS)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_language_model_takes_what_was_planned(precision, cuda_build):
    build = cuda_build(VICUNA, precision)
    manifest = Manifest.read(build)
    plan = plan_of_build(manifest)
    row = next(r for r in plan.components if r.component == "language_model")
    before = taken()
    with open_engine(build, manifest):
        opened = taken() - before
    assert row.weights + plan.caches <= opened <= 1.01 * (row.weights + plan.caches) + row.work
    assert taken() == before


def test_too_little_is_said_before_anything_is_taken(cuda_build):
    build = cuda_build(VICUNA, "fp16")
    manifest = Manifest.read(build)
    plan = plan_of_build(manifest)
    row = next(r for r in plan.components if r.component == "language_model")
    free = row.weights + row.work + plan.caches // 2
    before, allocations = taken(), read_counters()["allocations"]
    with settings(other_bytes=TOTAL - free - before):
        with pytest.raises(EngineError, match=r"language_model wants .* of GPU 0 .*`slots` 4 or"):
            open_engine(build, manifest)
        assert read_counters()["allocations"] == allocations
        open_engine(build, manifest, limits=EngineLimits(slots=4)).close()
    with (
        settings(other_bytes=TOTAL - before - (1 << 20)),
        pytest.raises(EngineError, match=r"vision_encoder wants .* \(nvidia-smi\)"),
    ):
        open_runner(build, manifest, "vision_encoder")


def test_an_operators_limits_are_what_is_compared(cuda_build):
    build = cuda_build(VICUNA, "fp16")
    manifest = Manifest.read(build)
    wide = replace(manifest, limits=replace(manifest.limits, slots=1 << 20))
    with pytest.raises(EngineError, match="for 1048576 slots of"):
        open_engine(build, wide)
