"""What decides a plan changes its key, and nothing else does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from iblip.engines.cache import key
from iblip.engines.cache.key import PlanInputs, plan_inputs_from_graph
from iblip.engines.hardware.nvidia import Driver, Gpu
from iblip.engines.tensorrt.libraries import Library
from iblip.engines.tensorrt.options import PlanOptions
from iblip.engines.tensorrt.profile import Profile, Span
from iblip.export.artifact.contract import Contract
from iblip.export.artifact.verified_graph import OnnxGraph
from iblip.export.errors import EngineError, OptionError

GRAPH = OnnxGraph(
    component="vision_encoder",
    name="model",
    path=Path("model.onnx"),
    weights=(),
    precision="fp16",
    digest="0" * 64,
    contract=Contract(inputs=(), outputs=()),
)
LIBRARY = Library(kind="tensorrt-rtx", module=None, version="1.7.1")
OPTIONS = PlanOptions(targets=("sm89", "sm86"), flags=("strict-nans", "tf32"))


def batches(most: int) -> Profile:
    return Profile(axes={"batch": Span(min=1, opt=1, max=most)})


def inputs_of(**changes) -> PlanInputs:
    given = {"graph": GRAPH, "library": LIBRARY, "options": OPTIONS, "profiles": [batches(8)]}
    return plan_inputs_from_graph(**{**given, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"graph": replace(GRAPH, digest="1" * 64)},  # a weight or a node
        {"graph": replace(GRAPH, precision="fp32")},
        {"library": replace(LIBRARY, kind="tensorrt")},
        {"library": replace(LIBRARY, version="1.7.2")},
        {"options": replace(OPTIONS, targets=("sm89",))},
        {"options": replace(OPTIONS, flags=("tf32",))},
        {"options": replace(OPTIONS, workspace=512)},
        {"profiles": [batches(16)]},
        {"profiles": [batches(8), batches(1)]},
    ],
)
def test_what_decides_a_plan_changes_its_key(changes: dict) -> None:
    assert inputs_of(**changes).key != inputs_of().key


def test_a_newer_builder_misses_what_an_older_one_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    before = inputs_of().key
    assert replace(inputs_of(), builder=key.BUILDER + 1).key != before
    assert replace(inputs_of(), machine="linux-aarch64").key != before


@pytest.mark.parametrize(
    "changes",
    [
        {"graph": replace(GRAPH, component="qformer", name="other", path=Path("elsewhere.onnx"))},
        {"options": PlanOptions(targets=("SM86", "sm89", "sm89"), flags=("tf32", "strict-nans"))},
    ],
)
def test_where_it_lies_and_how_it_is_spelt_do_not(changes: dict) -> None:
    assert inputs_of(**changes).key == inputs_of().key


def test_a_plan_for_this_machine_is_bound_to_its_gpu_and_driver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = Gpu(name="NVIDIA L4", capability="sm89", memory=23 * 2**30)
    driver = Driver(version="580.95.05", cuda="13.0", gpus=(gpu, replace(gpu, name="another")))
    keys = set()
    for found in (
        driver,
        replace(driver, gpus=(replace(gpu, name="NVIDIA L40S"),)),
        replace(driver, gpus=(replace(gpu, memory=2**30),)),
        replace(driver, cuda="13.1"),
    ):
        monkeypatch.setattr(key, "find_driver", lambda found=found: found)
        keys.add(inputs_of(options=PlanOptions()).key)
    assert len(keys) == 4
    assert inputs_of().key not in keys


@pytest.mark.parametrize("found", [None, Driver(version=None, cuda="13.0", gpus=())])
def test_a_plan_for_no_gpu_at_all_has_no_recipe(
    monkeypatch: pytest.MonkeyPatch, found: Driver | None
) -> None:
    monkeypatch.setattr(key, "find_driver", lambda: found)
    with pytest.raises(EngineError, match="no NVIDIA GPU to build for here"):
        inputs_of(options=PlanOptions())


def test_nonsense_has_no_recipe() -> None:
    with pytest.raises(OptionError, match="digest 'abc' cannot be told from others"):
        inputs_of(graph=replace(GRAPH, digest="abc"))
    with pytest.raises(OptionError, match="expected exactly one of the two"):
        replace(inputs_of(), device={"name": "NVIDIA L4"})
    with pytest.raises(OptionError, match="expected exactly one of the two"):
        replace(inputs_of(), targets=())
