"""What the Python models do, without Triton."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import model_repository
from iblip.engines.language_model.opening import EngineLimits
from iblip.engines.language_model.types import (
    GenerationRequest,
)
from iblip.export.errors import EngineError, OptionError
from iblip.serving.steps.arguments import StepArguments
from iblip.serving.steps.batches import run_joined
from iblip.serving.steps.ending import EXIT_STATUS
from iblip.serving.wire.contract import ServerContract

PICTURE = np.zeros((1, 4, 6, 3), np.uint8)
REQUEST = GenerationRequest(prompt="What?", visual_prompt=np.zeros((1, 8, 4), np.float32))


LOST = EngineError("ONNX Runtime failed (CUDA failure 700: an illegal memory access ; GPU=0)")

ENDING = """
import sys, threading
from iblip.export.errors import EngineError
from iblip.serving.steps import ending

assert not ending.end_if_fatal(EngineError("CUDA failure 2: out of memory ; GPU=0"))
for _ in range(2):
    assert ending.end_if_fatal(EngineError(sys.argv[1]))
print("answered", flush=True)  # there is time for it
threading.Event().wait(60)
"""


def test_a_process_without_its_gpu_answers_and_ends():
    done = subprocess.run(
        [sys.executable, "-c", ENDING, str(LOST)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (EXIT_STATUS, "answered\n")
    assert done.stderr.count("cudaErrorIllegalAddress: this process can no longer use the GPU") == 1


class TritonError(str):
    INTERNAL = "INTERNAL"
    INVALID_ARG = "INVALID_ARG"

    def __new__(cls, text, code):
        return str.__new__(cls, f"{code}: {text}")


def test_a_component_without_its_gpu_answers_and_ends(monkeypatch):
    backend = types.ModuleType("pb_utils")
    backend.TritonError = TritonError
    backend.InferenceResponse = lambda output_tensors, error: error
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    monkeypatch.delitem(sys.modules, "iblip.serving.steps.component_model", raising=False)
    module = importlib.import_module("iblip.serving.steps.component_model")
    ended = []
    monkeypatch.setattr(module, "end_if_fatal", ended.append)
    pixels = types.SimpleNamespace(name=lambda: "pixels", as_numpy=lambda: PICTURE)
    request = types.SimpleNamespace(inputs=lambda: [pixels])

    def fail(feed):
        raise LOST

    model = module.ComponentModel()
    model.runner, model.largest = types.SimpleNamespace(infer=fail), 8
    model.rules = types.SimpleNamespace(checked=lambda tensors: tensors)
    (response,) = model.execute([request])
    assert "CUDA failure 700" in response
    assert ended == [LOST]


def doubled(feed):
    return {"y": feed["x"] * 2, "sum": feed["x"].sum(axis=1, keepdims=True)}


def feed(*rows):
    return {"x": np.array(rows, dtype=np.int64)}


def test_requests_of_one_shape_run_once_and_get_their_own_rows():
    runs = []

    def infer(joined):
        runs.append(joined["x"].shape)
        return doubled(joined)

    results = run_joined([feed([1, 2]), feed([3, 4], [5, 6]), feed([7, 8, 9])], infer, largest=8)
    assert runs == [(3, 2), (1, 3)]
    assert [result["y"].tolist() for result in results] == [
        [[2, 4]],
        [[6, 8], [10, 12]],
        [[14, 16, 18]],
    ]
    assert [result["sum"].tolist() for result in results] == [[[3]], [[7], [11]], [[24]]]


def test_a_failed_run_is_the_result_of_its_own_requests_only():
    def infer(joined):
        if joined["x"].shape[1] == 3:
            raise EngineError("no threes")
        return doubled(joined)

    good, bad = run_joined([feed([1, 2]), feed([1, 2, 3])], infer, largest=8)
    assert good["y"].tolist() == [[2, 4]]
    assert isinstance(bad, EngineError)


def test_a_request_that_fails_takes_no_other_of_its_run_with_it():
    runs = []

    def infer(joined):
        runs.append(len(joined["x"]))
        if (joined["x"] == 6).any():
            raise EngineError("no sixes")
        return doubled(joined)

    asked = [feed([1, 2]), feed([3, 4], [5, 6]), feed([7, 8])]
    first, bad, last = run_joined(asked, infer, largest=8)
    assert runs == [4, 1, 2, 1]
    assert (first["y"].tolist(), last["y"].tolist()) == ([[2, 4]], [[14, 16]])
    assert isinstance(bad, EngineError)


def test_nothing_is_run_again_without_a_gpu():
    runs = []

    def infer(joined):
        runs.append(len(joined["x"]))
        raise LOST

    assert run_joined([feed([1, 2]), feed([3, 4])], infer, largest=8) == [LOST, LOST]
    assert runs == [2]


def test_more_rows_than_an_engine_takes_are_run_in_turns():
    runs = []

    def infer(joined):
        runs.append(joined["x"].ravel().tolist())
        return doubled(joined)

    results = run_joined([feed([1]), feed([2], [3], [4], [5]), feed([6])], infer, largest=2)
    assert runs == [[1, 2], [3, 4], [5, 6]]
    assert [r["y"].ravel().tolist() for r in results] == [[2], [4, 6, 8, 10], [12]]


def triton_arguments(build, /, *, kind="CPU", device=0, groups=(), **parameters):
    """As Triton 2.51 has them: it fills in a group, and each group's GPUs."""
    groups = list(groups) or [{"kind": f"KIND_{kind}", "count": 1, "gpus": []}]
    written = {name: {"string_value": value} for name, value in parameters.items()}
    model = build / "model_repository" / "qformer"
    model.mkdir(parents=True, exist_ok=True)
    return {
        "model_repository": str(model),
        "model_config": json.dumps({"parameters": written, "instance_group": groups}),
        "model_instance_kind": kind,
        "model_instance_device_id": str(device),
    }


def test_a_step_finds_its_build_from_its_own_folder(make_build):
    directory, manifest = make_build()
    step = StepArguments.from_triton(triton_arguments(directory, directory="../..", threads="2"))
    assert step.directory == directory.resolve()
    assert step.manifest == manifest
    assert step.threads == 2


@pytest.mark.parametrize(
    ("kind", "number", "device"), [("GPU", 0, 0), ("GPU", 3, 3), ("CPU", 0, 0), ("MODEL", 0, 0)]
)
def test_a_step_is_on_the_gpu_of_its_instance(make_build, kind, number, device):
    directory, _ = make_build()
    arguments = triton_arguments(directory, directory="../..", kind=kind, device=number)
    assert StepArguments.from_triton(arguments).device == device


@pytest.mark.parametrize(
    ("groups", "instances"),
    [
        ([{"count": 1, "gpus": []}], 1),
        ([{"count": 1, "gpus": [2]}], 1),
        ([{"count": 2, "gpus": []}], 2),
        ([{"count": 1, "gpus": [0, 1]}], 2),
        ([{"count": 2, "gpus": [0, 1]}, {"count": 1, "gpus": [2]}], 5),
    ],
)
def test_what_schedules_its_own_requests_is_alone(make_build, groups, instances):
    directory, _ = make_build()
    step = StepArguments.from_triton(triton_arguments(directory, directory="../..", groups=groups))
    assert step.instances == instances
    if instances == 1:
        step.check_alone()
    else:
        message = f"asks for {instances} instances, but one .* answers many .* `count: 1`"
        with pytest.raises(OptionError, match=message):
            step.check_alone()


def model_of(name, monkeypatch):
    """The module `model_repository/<name>/1/model.py`, without Triton's own module."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", types.ModuleType("pb_utils"))
    path = Path(model_repository.__file__).parent / name / "1" / "model.py"
    spec = importlib.util.spec_from_file_location(f"{name}_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class OpenedError(Exception):
    """What would have been opened."""


def opening(*arguments, **options):
    raise OpenedError(arguments, options)


@pytest.mark.parametrize("name", ["vision_encoder", "qformer"])
def test_a_component_is_opened_on_its_instances_gpu(make_build, monkeypatch, name):
    module = model_of(name, monkeypatch)
    monkeypatch.setattr("iblip.serving.steps.component_model.open_runner", opening)
    directory, manifest = make_build(kind="onnxruntime-cuda")
    written = {"directory": "../..", "component": name, "threads": "2"}
    with pytest.raises(OpenedError) as found:
        module.TritonPythonModel().initialize(
            triton_arguments(directory, kind="GPU", device=1, **written)
        )
    arguments, options = found.value.args
    assert arguments == (directory.resolve(), manifest, name)
    assert options == {"threads": 2, "device": 1}


def test_the_language_model_is_opened_on_its_instances_gpu_if_it_is_alone(make_build, monkeypatch):
    module = model_of("instructblip", monkeypatch)
    monkeypatch.setattr(module, "open_engine", opening)
    directory, manifest = make_build()
    told = ServerContract.from_manifest(manifest).to_parameters()
    arguments = triton_arguments(directory, kind="GPU", device=1, directory="../..", **told)
    with pytest.raises(OpenedError) as found:
        module.TritonPythonModel().initialize(arguments)
    assert found.value.args[1] == {"threads": None, "device": 1, "limits": EngineLimits()}
    groups = [{"count": 1, "gpus": [0, 1]}]
    arguments = triton_arguments(directory, kind="GPU", directory="../..", groups=groups)
    with pytest.raises(OptionError, match="asks for 2 instances"):
        module.TritonPythonModel().initialize(arguments)


@pytest.mark.parametrize("text", ["-1", "two", ""])
def test_threads_that_are_no_number_are_refused(make_build, text):
    directory, _ = make_build()
    step = StepArguments.from_triton(triton_arguments(directory, directory="../..", threads=text))
    with pytest.raises(OptionError, match="threads is "):
        _ = step.threads


def test_the_limits_are_the_operators(make_build):
    directory, _ = make_build()
    written = {"slots": "2", "max_length": "90", "queue": "5", "prefix_cache": "false"}
    step = StepArguments.from_triton(triton_arguments(directory, directory="../..", **written))
    assert step.limits == EngineLimits(slots=2, positions=90, queue=5, prefix_cache=False)
    shutil.rmtree(directory / "model_repository")
    step = StepArguments.from_triton(triton_arguments(directory, directory="../.."))
    assert step.limits == EngineLimits()


@pytest.mark.parametrize("text", ["False", "0", ""])
def test_a_switch_is_true_or_false(make_build, text):
    directory, _ = make_build()
    step = StepArguments.from_triton(
        triton_arguments(directory, directory="../..", prefix_cache=text)
    )
    with pytest.raises(OptionError, match=f"prefix_cache is '{text}' in config.pbtxt; expected tr"):
        _ = step.limits


@pytest.mark.parametrize("name", ["slots", "max_length", "queue"])
@pytest.mark.parametrize("text", ["0", "-1", "many", ""])
def test_limits_that_are_no_number_are_refused(make_build, name, text):
    directory, _ = make_build()
    step = StepArguments.from_triton(triton_arguments(directory, directory="../..", **{name: text}))
    with pytest.raises(OptionError, match=f"{name} is '{text}' in config.pbtxt; expected an int"):
        _ = step.limits
